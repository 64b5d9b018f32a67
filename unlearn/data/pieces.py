"""Long texts in pieces of so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unlearn.errors import UserError

Encode = Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]]
"""From a text to its token ids, special ones included, and their offsets in its characters."""


def pieces(text: str, max_length: int, encode: Encode) -> list[str]:
    """Consecutive pieces of at most `max_length` tokens, each counted as `encode` gives it alone.

    They are cut where tokens of the whole text begin, and together are the text; only a piece of nothing but
    white space is left out.

    Raises:
        UserError: not even one character fits.
    """
    ids, offsets = encode(text)
    if len(ids) <= max_length:
        return [text]
    starts = np.array([start for start, end in offsets if end > start], dtype=np.int64)
    found, at = [], 0
    while at < len(text):
        end = _end(text, at, starts, max_length, encode)
        found.append(text[at:end])
        at = end
    return [piece for piece in found if piece.strip()]


def _end(text: str, at: int, starts: np.ndarray, max_length: int, encode: Encode) -> int:
    token = min(int(np.searchsorted(starts, at)) + max_length, len(starts))
    while True:
        end = int(starts[token]) if token < len(starts) else len(text)
        if end <= at:
            raise UserError(
                f"dataset.max_length={max_length} is too short for the text {text[at : at + 40]!r}: raise it"
            )
        # Alone a piece can have more tokens than it has within the text: special ones, a space put before it.
        over = len(encode(text[at:end])[0]) - max_length
        if over <= 0:
            return end
        token -= over
