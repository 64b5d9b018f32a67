"""Reading rows: a local folder of json, jsonl or parquet files, or a dataset of the hub."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.errors import UserError
from unlearn.paths import is_file, is_folder, user_path
from unlearn.reading import found, lines_of, parse_json, read_bytes, read_parquet, read_text

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".parquet")
_SPLIT = re.compile(r"(.+?)(?:@(\d*):(\d*))?", re.DOTALL)
_OF_ROWS = ("question", "answer", "text")


class UnavailableError(UserError):
    """A dataset of the hub that cannot be read here; perhaps it can where the run is made."""


@dataclass(frozen=True)
class Table:
    """The rows of a file or of a split of the hub; `label` is what messages call it.

    `lines` are the lines the rows stand in, for a file with a row a line. A bare text in place of an object
    is a row whose only column is the one that `read_rows` was told.
    """

    label: str
    rows: list[Row]
    lines: list[int] | None = None

    def where(self, number: int) -> str:
        """The place of a row in words; rows are counted from 0, as in ids and slices."""
        return f"{self.label}, row {number}{'' if self.lines is None else f' (line {self.lines[number]})'}"

    def cut(self, part: slice) -> list[tuple[int, Row, str]]:
        """The rows of a slice, each with its number and its place in words.

        Raises:
            UserError: it selects none.
        """
        chosen = range(len(self.rows))[part]
        if not chosen:
            start, stop = ("" if end is None else end for end in (part.start, part.stop))
            raise UserError(
                f"{self.label}: @{start}:{stop} selects none of its {len(self.rows)} rows, which are counted "
                "from 0 and end before the second number"
            )
        return [(number, self.rows[number], self.where(number)) for number in chosen]


def parse_split(split: str) -> tuple[str, slice]:
    """`"retain90@0:1200"` → the split's name and which rows of it; without `@` all of them.

    (Not in brackets: the command line would want them quoted.)
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        return split, slice(None)
    name, start, stop = match.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def slice_hint(split: str) -> str:
    """What to add to "there is no such split" where an `@` was meant to cut rows out, but does not."""
    name, at, rows = split.rpartition("@")
    if not at or not name or parse_split(split)[0] != split:
        return ""
    return f" (rows are cut out as {name}@start:stop, as {name}@0:100; {rows!r} is no such slice)"


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a split in a local folder, or None."""
    return next((path for s in SUFFIXES if is_file(path := folder / f"{name}{s}")), None)


def file_names(folder: Path) -> list[str]:
    """The splits a local folder has."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES and is_file(path)})


def read_rows(path: str | Path, label: str | None = None, *, text: str = "text") -> Table:
    """All rows of a file: json lines, a json list, or parquet.

    A row is an object, or a text alone, which becomes the column `text`.

    Raises:
        UserError: the file cannot be read, or does not hold rows; names file and line.
    """
    label, path = label or str(path), user_path(path)
    if path.suffix == ".parquet":
        return _table(label, read_parquet(path, label), None, text)
    content = read_text(path, label)
    if content.lstrip().startswith("["):
        return _table(label, parse_json(content, label), None, text)
    lines, values = [], []
    for number, line in lines_of(content):
        try:
            values.append(parse_json(line, label, line=number))
        except UserError as error:
            raise _better(error, content, label) from None
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
            raise UserError(f"{table.where(number)}: a JSON object is wanted, found {found(row)}")
    return table


def _better(error: UserError, content: str, label: str) -> UserError:
    """Why lines are no rows, where the whole file tells more: one object, or objects over several lines."""
    if not content.lstrip().startswith("{"):
        if "," in content.split("\n", 1)[0] and not content.lstrip().startswith('"'):
            return UserError(f"{error}; is it a CSV file? Write an object a line, or parquet")
        return error
    try:
        whole = parse_json(content, label)
    except UserError:
        first = content.lstrip().split("\n", 1)[0].strip()
        if first == "{":
            return UserError(
                f"{error}; objects over several lines must be in a list, [{{…}}, {{…}}], or write one a line"
            )
        return error
    return UserError(
        f"{label}: {_wrapped(whole) or 'one JSON object over several lines: put it in a list, [ ]'}"
    )


def _wrapped(value: Any) -> str | None:
    """What is wrong with the only value of a file, where it is an object that holds the rows."""
    if not isinstance(value, dict) or any(isinstance(value.get(name), str) for name in _OF_ROWS):
        return None
    lists = [
        name for name, own in value.items() if isinstance(own, list) and own and isinstance(own[0], dict)
    ]
    if lists:
        return f"this is one JSON object with a list in {lists[0]!r}: write the list of rows alone"
    if value and all(isinstance(own, list | dict) for own in value.values()):
        return (
            f"this is one JSON object of columns ({', '.join(map(str, list(value)[:5]))}): write a list of "
            "rows, [{…}, {…}]; pandas does with orient='records'"
        )
    return None


def read_split(path: str, name: str) -> Table:
    """All rows of a split, from a local folder if `path` is one, else from the hub's dataset `path`.

    `name` is a file's name in the folder, without suffix; on the hub it is `config/split`, or the config of a
    dataset whose only split is `train`.

    Raises:
        UnavailableError: the hub does not give it.
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
    """Hash of a file's content, for fingerprints.

    Raises:
        UserError: it cannot be read.
    """
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]
