"""Write lines of text, and rows in columns, to the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

_WIDEST = 40  # characters of a column; a longer cell moves the rest of its own row


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a line for each row, with their columns below each other."""
    every = [*rows]
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*every, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in every]


def write(lines: Iterable[str]) -> None:
    """Write lines as they are, however wide the terminal is."""
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
