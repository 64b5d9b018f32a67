"""Metrics of generated text and its true answer; pure functions, one value per example, [E].

On forget data, lower is forgetting. NaN means "could not be measured". An empty generation is a measured 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from eval.metrics.words import Words, isolated, words_of

# They take seconds to import, and the checks of a configuration do not need them.
if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU


@dataclass(frozen=True)
class Rouge:
    """Overlap of words, each array [E], from 0 to 1."""

    rouge1_recall: np.ndarray
    rouge1_f1: np.ndarray
    rougeL_recall: np.ndarray
    rougeL_f1: np.ndarray


Texts: TypeAlias = Sequence[str | None]
"""None where a text is missing; a metric is NaN there."""


def rouge(answers: Texts, generations: Texts, words: Words | None = None) -> Rouge:
    """Compute ROUGE-1 and ROUGE-L of each generation; NaN where the true answer has no word.

    words: the tokenizer of both; by default the one that `words_of` chooses from these answers. Its stemmer
        compares words by their stems: TOFU, LUME and OpenUnlearning do, the released MUSE does not.
    """
    words = words_of(answers) if words is None else words
    rows = [_rouge(answer, text, words) for answer, text in _compared(answers, generations)]
    return Rouge(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def bleu(answers: Texts, generations: Texts, *, effective_order: bool = True) -> np.ndarray:
    """Compute BLEU of each single text with sacrebleu, from 0 to 100 as in published tables.

    With its defaults: tokenizer 13a, n-grams up to 4, exponential smoothing. Characters of scripts without
    spaces are separated first, as sacrebleu's `zh` does for Chinese. `effective_order` is the default of its
    `sentence_bleu`: a generation of fewer than four tokens is scored by the n-grams it has. FLAT's released
    evaluation (arXiv 2410.11143) calls `corpus_bleu` on single texts, which is False here and gives such
    generations 0. NaN where the true answer has no token.
    """
    score = _bleu(effective_order).sentence_score
    scores = [score(isolated(text), [isolated(answer)]) for answer, text in _compared(answers, generations)]
    return np.array([one.score if one.ref_len else np.nan for one in scores], dtype=np.float64)


def exact_match(answers: Texts, generations: Texts) -> np.ndarray:
    """Return 1 where both are equal up to case and surrounding space, else 0; NaN for an empty true answer.

    The knowledge score of LUME and of SemEval-2025 Task 4.
    """
    pairs = [
        (answer.strip().lower(), text.strip().lower()) for answer, text in _compared(answers, generations)
    ]
    return np.array([float(answer == text) if answer else np.nan for answer, text in pairs], dtype=np.float64)


def cut_at(texts: Sequence[str], stops: Sequence[str]) -> list[str]:
    """Return each text up to the first of `stops` in it; the whole text without any.

    For answers to few-shot prompts, after which models write further questions.

    Raises:
        ValueError: a stop is empty.
    """
    if not all(stops):
        raise ValueError(f"cut_at: the stops {list(stops)!r} hold an empty string, which is everywhere")
    return [text[: min((at for at in map(text.find, stops) if at >= 0), default=None)] for text in texts]


def _compared(answers: Texts, generations: Texts) -> list[tuple[str, str]]:
    """Return pairs of texts, with an empty true answer where one is missing: metrics give NaN for it."""
    pairs = zip(answers, generations, strict=True)
    return [("", "") if answer is None or text is None else (answer, text) for answer, text in pairs]


def _rouge(answer: str, generation: str, words: Words) -> tuple[float, float, float, float]:
    if not words.tokenize(answer):
        return (np.nan, np.nan, np.nan, np.nan)
    scores = _scorer(words).score(answer, generation)
    return (
        scores["rouge1"].recall,
        scores["rouge1"].fmeasure,
        scores["rougeL"].recall,
        scores["rougeL"].fmeasure,
    )


@cache
def _scorer(words: Words) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], tokenizer=words)


@cache
def _bleu(effective_order: bool) -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=effective_order)
