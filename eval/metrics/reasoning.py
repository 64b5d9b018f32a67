"""Metrics of reasoning traces: pure functions of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eval.metrics.text import rouge
from eval.metrics.words import Words

MARK = "</think>"
"""Where a trace ends and the answer begins."""


def trace_of(text: str) -> str:
    """Return what comes before the end of the trace; all of a text without it."""
    return text.partition(MARK)[0].strip()


def answer_of(text: str) -> str:
    """Return what follows the end of the trace; nothing where the trace does not end."""
    return text.partition(MARK)[2].strip()


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, by nltk's Punkt with its defaults, which need no data."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return [str(each) for each in PunktSentenceTokenizer().tokenize(text)]


def trace_recall(true: str, generated: str, words: Words) -> float:
    """Return the mean over the true trace's sentences of their best ROUGE-L recall by a generated sentence.

    0 without a generated sentence; NaN where no true sentence has a word. A sentence without a word does not
    count. (R-TOFU, arXiv 2505.15214, `test_cot.py`.)
    """
    theirs, ours = sentences(true), sentences(generated)
    if not ours:
        return 0.0 if any(words.tokenize(each) for each in theirs) else math.nan
    pairs = [(one, other) for one in theirs for other in ours]
    recall = rouge([one for one, _ in pairs], [other for _, other in pairs], words).rougeL_recall
    return _mean_of_best(recall.reshape(len(theirs), len(ours)))


def _mean_of_best(recall: np.ndarray) -> float:
    """Return the mean of the rows' maxima; rows of NaN are left out."""
    best: Sequence[float] = [row.max() for row in recall if not np.isnan(row).any()]
    return float(np.mean(best)) if len(best) else math.nan
