from __future__ import annotations

import math

import numpy as np
import pytest

from eval.metrics.fluency import ngram_entropy, token_entropy
from eval.metrics.short_answers import answer_f1, answer_match


def test_short_answers_by_hand() -> None:
    answers = [("The Warden", "keeper of gates"), ("7",), ("(A)",), ("x",), ("King of the hill",), ("(A)",)]
    texts = ["warden!", "the answer 7", "!!", None, "a hill of ants", "(a)"]
    # Of "king of hill" two words are among the three of "hill of ants"; an article alone is a word.
    assert answer_f1(answers, texts) == pytest.approx([1, 2 / 3, 0, math.nan, 2 / 3, 1], nan_ok=True)
    assert answer_match(answers, texts) == pytest.approx([1, 0, 0, math.nan, 0, 1], nan_ok=True)


def test_ngram_entropy() -> None:
    # three bigrams and two trigrams, each once: (⅔·log₂ 3 + 4⁄3·1)/2
    values = ngram_entropy(["a b c d", "a b a b a b", "word", "", None])
    assert values[0] == pytest.approx(1.1949875, abs=5e-8)
    # ab 3, ba 2 of five bigrams; aba 2, bab 2 of four trigrams
    two = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert values[1] == pytest.approx((2 / 3 * two + 4 / 3) / 2)
    assert values[2:4].tolist() == [0, 0]
    assert np.isnan(values[4])
    # punctuation is a word of its own
    assert ngram_entropy(["a, b"])[0] == pytest.approx(ngram_entropy(["x y z"])[0])


def test_token_entropy() -> None:
    values = token_entropy([["a", "a", "b"], ["a", "b", "c"], ["a", "a"], ["a"], [], None])
    assert values[0] == pytest.approx((1 / 3 * math.log2(3) + 2 / 3 * math.log2(3 / 2)) / math.log2(3))
    assert values[0] == pytest.approx(0.5793802, abs=5e-8)
    assert values[1:5].tolist() == pytest.approx([1, 0, 0, 0])
    assert np.isnan(values[5])
