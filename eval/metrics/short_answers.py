"""Metrics of short answers that may be worded in several ways, as SQuAD has them; one value per example, [E].

Case, punctuation of ASCII, the articles and the number of spaces do not count. Of several right answers the
one that gives the most counts. NaN where nothing was generated.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_match(answers: Sequence[Sequence[str]], generations: Sequence[str | None]) -> np.ndarray:
    """Return 1 where the generation has the same words as one of its right answers, else 0."""
    return _best(answers, generations, lambda true, own: float(true == own))


def answer_f1(answers: Sequence[Sequence[str]], generations: Sequence[str | None]) -> np.ndarray:
    """Return the harmonic mean of precision and recall of the generation's words, each counted."""
    return _best(answers, generations, _f1)


def words(text: str) -> list[str]:
    """Return the words that are compared; articles alone stay, as the answer (A) is one."""
    plain = text.lower().translate(_WITHOUT_PUNCTUATION)
    return _ARTICLES.sub(" ", plain).split() or plain.split()


def _f1(true: list[str], own: list[str]) -> float:
    if not true or not own:
        return 0.0
    common = sum((Counter(true) & Counter(own)).values())
    return 2 * common / (len(true) + len(own))


def _best(
    answers: Sequence[Sequence[str]],
    generations: Sequence[str | None],
    score: Callable[[list[str], list[str]], float],
) -> np.ndarray:
    pairs = zip(answers, generations, strict=True)
    values = [
        np.nan if text is None else max((score(words(true), words(text)) for true in own), default=np.nan)
        for own, text in pairs
    ]
    return np.array(values, dtype=np.float64)
