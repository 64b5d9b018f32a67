from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from eval.benchmarks.muse import STOPS
from eval.metrics.text import bleu, cut_at, exact_match, rouge
from eval.metrics.words import Words

nan = math.nan


def test_rouge_by_hand():
    # Reference: the cat sat on mat (5 words). Generated: cat the sat. Common words: 3 of 5;
    # longest common subsequence "cat sat" or "the sat": 2 of 5, 2 of 3; F1 = 2·(2/5)(2/3)/(2/5 + 2/3) = .5
    found = rouge(["the cat sat on mat"], ["cat the sat"])
    assert found.rouge1_recall == pytest.approx(3 / 5)
    assert found.rouge1_f1 == pytest.approx(3 / 4)  # 2·(3/5)(3/3)/(3/5 + 3/3)
    assert found.rougeL_recall == pytest.approx(2 / 5)
    assert found.rougeL_f1 == pytest.approx(0.5)


def test_words_are_compared_by_their_stems():
    assert rouge(["running dogs"], ["run dog"]).rougeL_recall == 1


def test_without_a_stemmer_words_are_compared_as_they_are():
    # Of "running dogs" neither word is in "run dog"; of "running dog" one of two.
    found = rouge(
        ["running dogs", "running dog"], ["run dog", "run dog"], Words("rouge-score", stemmer=False)
    )
    np.testing.assert_array_equal(found.rougeL_recall, [0, 1 / 2])


def test_an_empty_generation_is_zero_and_an_empty_answer_is_not_measurable():
    found = rouge(["Paris", "?!", ""], ["", "?!", "Paris"])
    np.testing.assert_array_equal(found.rougeL_recall, [0.0, math.nan, math.nan])
    np.testing.assert_array_equal(found.rouge1_recall, [0.0, math.nan, math.nan])


def test_no_examples():
    assert rouge([], []).rougeL_f1.shape == (0,)


@pytest.mark.parametrize("stemmer", [True, False])
def test_the_same_as_the_library_with_its_own_stemmer(stemmer):
    answers = ["Jaime Vasquez was born on the 25th of February.", "Awards: she had won many, many prizes!"]
    texts = ["He had been born in Santiago on 25th February", "many prizes were winning the awarded"]
    found = rouge(answers, texts, Words("rouge-score", stemmer))
    plain = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
    for i, (answer, text) in enumerate(zip(answers, texts, strict=True)):
        expected = plain.score(answer, text)
        assert found.rouge1_recall[i] == expected["rouge1"].recall
        assert found.rougeL_recall[i] == expected["rougeL"].recall
        assert found.rougeL_f1[i] == expected["rougeL"].fmeasure
        assert found.rouge1_f1[i] == expected["rouge1"].fmeasure


_WORDS = st.lists(st.sampled_from(["the", "cats", "cat", "sat", "run"]), max_size=8)


def longest_common(a, b):
    """Of subsequences, by the recursion that defines it."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


@given(_WORDS.filter(bool), _WORDS)
def test_rouge_is_defined_as_it_says(answer, text):
    found = rouge([" ".join(answer)], [" ".join(text)], Words("rouge-score", stemmer=False))
    common, subsequence = (Counter(answer) & Counter(text)).total(), longest_common(answer, text)
    assert found.rouge1_recall == pytest.approx(common / len(answer))
    assert found.rougeL_recall == pytest.approx(subsequence / len(answer))
    assert found.rougeL_f1 == pytest.approx(2 * subsequence / (len(answer) + len(text)))


def test_bleu_by_hand():
    # Generated "the cat sat on mat" of "the cat sat on the mat": 1-grams 5/5, 2-grams 3/4 (not "on mat"),
    # 3-grams 2/3, 4-grams 1/2; their product is 1/4, its fourth root .707107. Five words for six:
    # exp(1 − 6/5) = .818731. Together 57.893 of 100.
    assert bleu(["the cat sat on the mat"], ["the cat sat on mat"]) == pytest.approx(57.893, abs=5e-4)
    np.testing.assert_allclose(
        bleu(["the cat sat on the mat"] * 2, ["the cat sat on the mat", "a dog"]), [100, 0]
    )


def test_bleu_of_nothing():
    np.testing.assert_array_equal(bleu(["a b c d", "", " "], ["", "a", ""]), [0, nan, nan])
    assert bleu([], []).shape == (0,)


def test_bleu_of_less_than_four_words():
    # Two words, both pairs right: exp(mean of log 1, log 1) = 1, or 0 where the 3- and 4-grams that cannot be
    # there are asked for.
    assert bleu(["the cat"], ["the cat"]) == pytest.approx(100)
    assert bleu(["the cat"], ["the cat"], effective_order=False) == 0


def plain_bleu(answer, text):
    """A lacking n-gram counts as ½, the next as ¼ …; orders that a short text cannot have are left out."""
    logs, lacking = [], 1.0
    for n in range(1, min(4, len(text)) + 1):
        ours, theirs = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (text, answer))
        found, total = (ours & theirs).total(), ours.total()
        if n == 1 and not found:
            return 0.0
        lacking = lacking if found else lacking / 2
        logs.append(math.log((found or lacking) / total))
    if not logs:
        return 0.0
    return 100 * math.exp(min(0, 1 - len(answer) / len(text)) + sum(logs) / len(logs))


@given(_WORDS.filter(bool), _WORDS)
def test_bleu_is_defined_as_it_says(answer, text):
    assert bleu([" ".join(answer)], [" ".join(text)]) == pytest.approx(plain_bleu(answer, text), rel=1e-9)


@pytest.mark.parametrize("effective_order", [True, False])
def test_bleu_as_the_functions_of_the_library(effective_order):
    from sacrebleu import corpus_bleu, sentence_bleu

    pairs = [
        ("Harry's owl, Hedwig, slept.", "Harry’s owl slept, twice."),
        ("3,000 owls", "3,000"),
        ("a", "b c"),
    ]
    found = bleu(*zip(*pairs, strict=True), effective_order=effective_order)
    for value, (answer, text) in zip(found, pairs, strict=True):
        if effective_order:
            assert value == sentence_bleu(text, [answer]).score
        else:
            assert value == corpus_bleu([text], [[answer]]).score


def test_exact_match_by_hand():
    answers = ["555-12-3456", "Ada@Mail.com", "Oslo", "", " "]
    found = exact_match(answers, [" 555-12-3456\n", "ada@mail.COM", "Oslo.", "", "x"])
    np.testing.assert_array_equal(found, [1, 1, 0, nan, nan])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oslo.\n\nQuestion: Who?", "Oslo."),
        ("Oslo\nQuestion: Who?\n\nAnswer", "Oslo"),
        ("Oslo Question: Who?", "Oslo "),
        ("Oslo. Questions remain\nhere", "Oslo. Questions remain\nhere"),
        ("Question: Who?", ""),
        ("", ""),
    ],
)
def test_an_answer_ends_where_the_next_question_begins(text, expected):
    assert cut_at([text], STOPS) == [expected]


def test_cut_at_the_first_place_whatever_the_order_of_the_stops():
    assert cut_at(["abcdef", "xyz"], ["e", "cd"]) == cut_at(["abcdef", "xyz"], ["cd", "e"]) == ["ab", "xyz"]
    assert cut_at(["abc"], []) == ["abc"]
    with pytest.raises(ValueError, match="empty string"):
        cut_at(["a"], ["b", ""])


@given(st.text("ab\nQuestion:", max_size=30))
def test_cutting_one_stop_after_the_other_gives_the_same_for_muse(text):
    plain = text
    for stop in STOPS:
        plain = plain.split(stop)[0]
    assert cut_at([text], STOPS) == [plain]


def test_where_a_text_is_not_there_nothing_is_measured():
    answers, texts = ["the cat", None, "the cat"], [None, "the cat", "the cat"]
    np.testing.assert_array_equal(rouge(answers, texts).rougeL_recall, [math.nan, math.nan, 1])
    np.testing.assert_array_equal(exact_match(answers, texts), [math.nan, math.nan, 1])
    np.testing.assert_array_equal(np.isnan(bleu(answers, texts)), [True, True, False])
