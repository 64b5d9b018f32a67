"""Cut long texts into pieces of a maximum number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unlearn.errors import UserError

Encode = Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]]
"""Encodes a text as token ids, special ones included, with their character offsets."""


def pieces(text: str, max_length: int, encode: Encode) -> list[str]:
    """Cut a text into consecutive pieces that `encode` gives at most `max_length` tokens each.

    Cuts are where tokens of the whole text begin. Together the pieces are the text, except that pieces of
    white space are left out.

    Raises:
        UserError: not even one character fits.
    """
    ids, offsets = encode(text)
    if len(ids) <= max_length:
        return [text]
    starts = np.array([start for start, end in offsets if end > start], dtype=np.int64)
    parts, at = [], 0
    while at < len(text):
        end = _end(text, at, starts, max_length, encode)
        parts.append(text[at:end])
        at = end
    return [part for part in parts if part.strip()]


def _end(text: str, at: int, starts: np.ndarray, max_length: int, encode: Encode) -> int:
    token = min(int(np.searchsorted(starts, at)) + max_length, len(starts))
    while True:
        end = int(starts[token]) if token < len(starts) else len(text)
        if end <= at:
            raise UserError(
                f"dataset.max_length={max_length} is too short for the text {text[at : at + 40]!r}: raise it"
            )
        # A piece can have more tokens alone than within the text: special ones, or a space before it.
        excess = len(encode(text[at:end])[0]) - max_length
        if excess <= 0:
            return end
        token -= excess
