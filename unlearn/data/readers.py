"""Read rows from a local folder of json, jsonl or parquet files, or from a dataset of the hub."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.errors import UserError
from unlearn.paths import is_file, is_folder, user_path
from unlearn.reading import describe, lines_of, parse_json, read_bytes, read_parquet, read_text

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".parquet")
_SPLIT = re.compile(r"(.+?)(?:@(\d*):(\d*))?", re.DOTALL)
_TEXT_COLUMNS = ("question", "answer", "text")


class UnavailableError(UserError):
    """A dataset of the hub cannot be read on this machine; the machine of the run may be able to."""


@dataclass(frozen=True)
class Table:
    """The rows of a file or of a split of the hub; messages name it by its `label`.

    `lines` are the line numbers of the rows, for a file with one row per line. A bare text instead of an
    object is a row with one column, named by `read_rows`.
    """

    label: str
    rows: list[Row]
    lines: list[int] | None = None

    def where(self, number: int) -> str:
        """Name a row for a message; rows are counted from 0, as in ids and slices."""
        return f"{self.label}, row {number}{'' if self.lines is None else f' (line {self.lines[number]})'}"

    def cut(self, part: slice) -> list[tuple[int, Row, str]]:
        """Return the rows of a slice, each with its number and its name for messages.

        Raises:
            UserError: the slice selects no rows.
        """
        chosen = range(len(self.rows))[part]
        if not chosen:
            start, stop = ("" if end is None else end for end in (part.start, part.stop))
            raise UserError(
                f"{self.label}: @{start}:{stop} selects none of its {len(self.rows)} rows; rows are counted "
                "from 0, and the second number is exclusive"
            )
        return [(number, self.rows[number], self.where(number)) for number in chosen]


def parse_split(split: str) -> tuple[str, slice]:
    """Parse `"retain90@0:1200"` into the split's name and a slice of its rows; without `@` all of them.

    (Without brackets, which a shell requires to be quoted.)
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        return split, slice(None)
    name, start, stop = match.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def slice_hint(split: str) -> str:
    """Return a hint for "there is no such split" where an `@` is followed by no valid slice."""
    name, at, rows = split.rpartition("@")
    if not at or not name or parse_split(split)[0] != split:
        return ""
    return f" (select rows as {name}@start:stop, such as {name}@0:100; {rows!r} is not such a slice)"


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of a split in a local folder, or None."""
    return next((path for s in SUFFIXES if is_file(path := folder / f"{name}{s}")), None)


def file_names(folder: Path) -> list[str]:
    """Return the names of the splits in a local folder."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES and is_file(path)})


def read_rows(path: str | Path, label: str | None = None, *, text: str = "text") -> Table:
    """Read all rows of a file: json lines, a json list, or parquet.

    A row is an object, or a bare text, which becomes the column that `text` names.

    Raises:
        UserError: the file cannot be read, or does not hold rows; names file and line.
    """
    label, path = label or str(path), user_path(path)
    if path.suffix.lower() == ".parquet":
        return _table(label, read_parquet(path, label), None, text)
    content = read_text(path, label)
    if content.lstrip().startswith("["):
        return _table(label, parse_json(content, label), None, text)
    lines, values = [], []
    for number, line in lines_of(content):
        try:
            values.append(parse_json(line, label, line=number))
        except UserError as error:
            raise _explain(error, content, label) from None
        lines.append(number)
    return _table(label, values, lines, text)


def _table(label: str, values: list[Any], lines: list[int] | None, text: str) -> Table:
    if not values:
        raise UserError(f"{label}: the file has no rows")
    if len(values) == 1 and (wrapped := _wrapped(values[0])):
        raise UserError(f"{label}: {wrapped}")
    rows = [{text: value} if isinstance(value, str) else value for value in values]
    table = Table(label, rows, lines)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{table.where(number)}: expected a JSON object, found {describe(row)}")
    return table


def _explain(error: UserError, content: str, label: str) -> UserError:
    """Return a clearer error where the whole file shows the cause: a CSV file, or objects over many lines."""
    if not content.lstrip().startswith("{"):
        if "," in content.split("\n", 1)[0] and not content.lstrip().startswith('"'):
            return UserError(f"{error}; is it a CSV file? Write one object per line, or parquet")
        return error
    try:
        whole = parse_json(content, label)
    except UserError:
        first = content.lstrip().split("\n", 1)[0].strip()
        if first == "{":
            return UserError(
                f"{error}; put objects over several lines in a list, [{{…}}, {{…}}], or write one per line"
            )
        return error
    return UserError(
        f"{label}: {_wrapped(whole) or 'one JSON object over several lines: put it in a list, [ ]'}"
    )


def _wrapped(value: Any) -> str | None:
    """Return what is wrong where the only value of a file is an object that holds the rows."""
    if not isinstance(value, dict) or any(isinstance(value.get(name), str) for name in _TEXT_COLUMNS):
        return None
    lists = [
        name for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)
    ]
    if lists:
        return f"this is one JSON object with a list in {lists[0]!r}: write only the list of rows"
    if value and all(isinstance(item, list | dict) for item in value.values()):
        return (
            f"this is one JSON object of columns ({', '.join(map(str, list(value)[:5]))}): write a list of "
            "rows, [{…}, {…}]; pandas does with orient='records'"
        )
    return None


def read_split(path: str, name: str) -> Table:
    """Read all rows of a split, from a local folder if `path` is one, else from the hub's dataset `path`.

    `name` is a file's name in the folder, without suffix; on the hub it is `config/split`, or the config of a
    dataset whose only split is `train`.

    Raises:
        UnavailableError: the hub does not provide it.
        UserError: the folder does not have it, or the file does not hold rows.
    """
    if is_folder(path):
        folder = user_path(path)
        file = find_file(folder, name)
        if file is None:
            raise UserError(f"{folder} has no {name}.json, .jsonl or .parquet")
        return read_rows(file)
    from datasets import load_dataset

    config, _, split = name.partition("/")
    try:
        rows = [dict(row) for row in load_dataset(path, config, split=split or "train")]
    except Exception as error:
        raise UnavailableError(
            f"dataset.path={path}: could not read {name!r} from the hub ({type(error).__name__}: {error}); "
            "a local folder with the same files works too"
        ) from error
    return _table(f"{path}: {name}", rows, None, "text")


def content_hash(path: Path) -> str:
    """Hash a file's content, for fingerprints.

    Raises:
        UserError: the file cannot be read.
    """
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]
