"""How many rows a pass has, however they are laid out."""

from __future__ import annotations

from unlearn.passes import unpadded


def rows_in_pass() -> int | None:
    """Return how many rows the current pass has in pieces; None outside of one."""
    row = unpadded._PIECES.get()
    return None if row is None else sum(piece.after is None for piece in row.pieces)
