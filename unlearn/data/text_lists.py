"""Read lists of texts from files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from unlearn.data.columns import text_of
from unlearn.data.readers import SUFFIXES, Row, read_rows
from unlearn.errors import UserError
from unlearn.paths import user_path
from unlearn.reading import lines_of, read_text

_TABLES = (".csv", ".tsv", ".xls", ".xlsx")


def read_texts(path: Path | str, label: str, column: str) -> list[str]:
    """Return the distinct texts of a file, sorted.

    A text file has one per line. In a file of rows (json, jsonl, parquet) the texts are the named column, or
    else `text`, or bare texts. `label` is the file's place in the configuration, for messages.

    Raises:
        UserError: the file cannot be read, a row holds no text, or there are none.
    """
    suffix = user_path(path).suffix.lower()
    if suffix in _TABLES:
        readable = ", ".join((f".txt with one {column} per line", *SUFFIXES))
        raise UserError(f"{label}: cannot read {suffix} (can: {readable})")
    if suffix in SUFFIXES:
        rows = read_rows(path, label).cut(slice(None))
        return distinct(text_of(row, _named(row, column), where) for _, row, where in rows)
    texts = distinct(line for _, line in lines_of(read_text(path, label)))
    if not texts:
        raise UserError(f"{label}: the file has no {column}s; write one per line")
    return texts


def distinct(lines: Iterable[str]) -> list[str]:
    """Return the distinct lines without white space at their ends, sorted; empty ones are left out."""
    return sorted({stripped for line in lines if (stripped := line.strip())})


def _named(row: Row, column: str) -> str:
    return "text" if column not in row and "text" in row else column
