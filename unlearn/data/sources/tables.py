"""Reading rows: a local folder of json, jsonl or parquet files, or a dataset of the hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from unlearn.errors import UserError

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".parquet")


def parse_split(split: str) -> tuple[str, slice]:
    """`"retain90@0:1200"` → the split's name and which rows of it; without `@` all of them.

    (Not in brackets: the command line would want them quoted.)
    """
    found = re.fullmatch(r"(.+?)(?:@(\d*):(\d*))?", split)
    if found is None:
        return split, slice(None)
    name, start, stop = found.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a split in a local folder, or None."""
    return next((path for s in SUFFIXES if (path := folder / f"{name}{s}").is_file()), None)


def file_names(folder: Path) -> list[str]:
    """The splits a local folder has."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES})


def read_file(path: Path) -> list[Row]:
    """All rows of a file: json lines, a json list, or parquet.

    Raises:
        UserError: the file does not hold rows; names file and line.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[Row] = pq.read_table(path).to_pylist()
        return rows
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: not a list of JSON objects (line {error.lineno}: {error.msg})"
            ) from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not a JSON object ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object is wanted, found {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows


def read_split(path: str, name: str) -> list[Row]:
    """All rows of a split, from a local folder if `path` is one, else from the hub's dataset `path`.

    `name` is a file's name in the folder, without suffix; on the hub it is `config/split`, or the config of a
    dataset whose only split is `train`.
    """
    folder = Path(path)
    if folder.is_dir():
        file = find_file(folder, name)
        if file is None:
            raise UserError(f"{folder} has no {name}.json, .jsonl or .parquet")
        return read_file(file)
    from datasets import load_dataset

    config, _, split = name.partition("/")
    try:
        return [dict(row) for row in load_dataset(path, config, split=split or "train")]
    except Exception as error:
        raise UserError(
            f"dataset.path={path}: could not read {name!r} from the hub ({type(error).__name__}: {error}); "
            "a local folder with the same files works too"
        ) from error


def content_hash(path: Path) -> str:
    """Hash of a file's content, for fingerprints."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def text_of(row: Row, column: str, where: str) -> str:
    """A column that must hold text.

    Raises:
        UserError: it is absent or not text; lists the columns there are.
    """
    value = row.get(column)
    if not isinstance(value, str):
        problem = "is missing" if column not in row else f"holds {type(value).__name__}, not text"
        raise UserError(f"{where}: column {column!r} {problem} (columns: {', '.join(row)})")
    return value
