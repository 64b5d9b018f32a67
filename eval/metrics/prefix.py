"""Prefix strength: how little of a text a model needs to complete it; pure functions on tokens and numbers.

Positions count tokens. A search for the shortest prefix starts at `left`, after which nothing of the answer
is given, and ends at `right`, the whole text. (G-effect, arXiv 2502.19301, as in its
`evaluation_everything.py`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

Mode: TypeAlias = Literal["exact", "perturb", "similar"]
"""What completing means: the rest word for word, so after the question in other words, or half of it."""


def prefix_strength(left: int, shortest: float, right: int) -> float:
    """Return 1 − (m − l)/(r − l): 1, all of the text follows from its beginning; 0, not even its last token.

    NaN where the text has no token after `left`.
    """
    return 1 - (shortest - left) / (right - left) if right > left else math.nan


def shortest_prefixes(
    left: Sequence[int], right: Sequence[int], completes: Callable[[dict[int, int]], dict[int, bool]]
) -> list[int]:
    """Return the shortest prefix after which each text is completed, by bisection.

    All texts are searched together: `completes` gets the prefix to try of each text that is not decided yet,
    by its number, and says of each whether its rest follows. A prefix is taken as completing where a shorter
    one is, which holds for exact completion by greedy decoding.
    """
    low, high = list(left), list(right)
    failed: set[int] = set()  # texts whose lower end was tried
    while True:
        asked = {i: (low[i] + high[i]) // 2 for i in range(len(low)) if low[i] < high[i]}
        asked = {i: middle for i, middle in asked.items() if middle > low[i] or i not in failed}
        if not asked:
            return high
        for i, holds in completes(asked).items():
            if holds:
                high[i] = asked[i]
            else:
                low[i] = asked[i]
                failed.add(i)


def shortest_exact(correct: np.ndarray, left: int) -> int:
    """Return the shortest prefix after which greedy decoding gives the rest, from one pass over the text.

    correct: whether each token from `left` on is the arg-max after the true tokens before it, [r − l].

    The first generated token is the arg-max after the prefix. Where it is the true one, the second is
    predicted after true tokens alone, and so on: decoding gives the rest if and only if every token of the
    rest is the arg-max. So the shortest prefix ends with the last token that is not.
    """
    wrong = np.flatnonzero(~np.asarray(correct, dtype=bool))
    return left + (int(wrong[-1]) + 1 if len(wrong) else 0)


def completes(generated: Sequence[int], rest: Sequence[int], mode: Mode, *, strict: bool = True) -> bool:
    """Return whether generated tokens complete a text with this rest; tokens beyond its length do not count.

    Exact and perturb: they are the rest. Similar: their longest common subsequence with the rest has half of
    its length. Without `strict`, as in the released code, the generated tokens are compared as far as they
    go: an empty generation completes everything.
    """
    compared = generated[: len(rest)]
    if mode == "similar":
        return 2 * common_subsequence(compared, rest) >= len(rest if strict else compared)
    return list(compared) == list(rest if strict else rest[: len(compared)])


def common_subsequence(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common subsequence of two sequences of tokens."""
    lengths = np.zeros(len(other) + 1, dtype=np.int64)
    tokens = np.asarray(other, dtype=np.int64)
    for token in one:
        # A match extends what the tokens before it have in common; what is longer so far stays.
        extended = np.where(tokens == token, lengths[:-1] + 1, lengths[1:])
        lengths[1:] = np.maximum.accumulate(extended)
    return int(lengths[-1])
