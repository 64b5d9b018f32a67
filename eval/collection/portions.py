"""Portions of a pass: how it is split, and their files, with which an interrupted collection continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from eval.collection.ragged import Ragged
from eval.collection.shared_prompts import rows_of
from unlearn.data.tokenization import TokenSequence
from unlearn.files import read_json, replacing


def portions_of(sequences: Sequence[TokenSequence], tokens: int) -> Iterator[list[int]]:
    """Yield portions of at most so many tokens, each the positions of its sequences.

    Equal prompts and similar lengths are in the same portion.
    """
    rows = sorted(rows_of(sequences, shared=True), key=lambda row: -row.width)
    part: list[int] = []
    size = 0
    for row in rows:
        if part and size + row.width > tokens:
            yield part
            part, size = [], 0
        part.extend(row.members)
        size += row.width
    if part:
        yield part


def portions_folder(directory: Path) -> Path:
    """Return the folder of portions below a model's directory; it is removed at the end of a collection."""
    return directory / "records" / ".parts"


def portion_key(names: Sequence[Any], sequences: Sequence[TokenSequence]) -> str:
    """Return the name of a portion's file, a hash of what is computed and of the tokens."""
    digest = hashlib.sha256(json.dumps([str(name) for name in names]).encode())
    for sequence in sequences:
        digest.update(np.array([len(sequence.ids), sequence.answer_start]).tobytes())
        digest.update(sequence.ids.tobytes())
    return digest.hexdigest()[:24]


def save_portion(file: Path, columns: dict[str, Ragged]) -> None:
    """Write the columns of a portion, atomically."""
    arrays = {
        f"{name}/{part}": getattr(r, part) for name, r in columns.items() for part in ("values", "offsets")
    }
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def read_portion(file: Path, names: Sequence[str]) -> dict[str, Ragged] | None:
    """Return the columns of a portion, None where there is no whole file of them."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"]) for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def read_texts(file: Path) -> list[str] | None:
    """Return the generated texts of a portion, None where there is no whole file of them."""
    try:
        return [str(text) for text in read_json(file)["texts"]]
    except (OSError, ValueError, KeyError):
        return None
