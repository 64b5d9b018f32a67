"""Read text, JSON and parquet files that a user gives; an error is one sentence.

All readers of such files share these functions, so that they accept the same: UTF-8 with or without a
byte-order mark, and lines that end in "\\n" or "\\r\\n" only.

`label` names the file in messages, such as `dataset.forget=notes.jsonl`; by default it is the path.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from unlearn.errors import UserError
from unlearn.paths import file_problem, user_path

_KINDS = (
    (b"\x1f\x8b", "a gzip file; unpack it first: gunzip"),
    (b"PK\x03\x04", "a zip file (or a spreadsheet); unpack it first, or export it as JSON"),
    (b"BZh", "a bzip2 file; unpack it first: bunzip2"),
    (b"\xfd7zXZ\0", "an xz file; unpack it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first: unzstd"),
    (b"PAR1", "a parquet file; its name has to end in .parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS; get the file itself: git lfs pull"),
    (codecs.BOM_UTF32_LE, "text in UTF-32; save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "text in UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8"),
    (codecs.BOM_UTF16_BE, "text in UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8"),
)
_SHOWN = 40


def read_text(path: str | Path, label: str | None = None) -> str:
    """Read a file of UTF-8 text, without its byte-order mark.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not UTF-8 text; names the line.
    """
    label = label or str(path)
    data = read_bytes(path, label)
    for magic, kind in _KINDS:
        if data.startswith(magic):
            raise UserError(f"{label}: this is {kind}")
    mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[mark:].decode()
    except UnicodeDecodeError as error:
        at = error.start + mark
        line = data.count(b"\n", 0, at) + 1
        raise UserError(
            f"{label}, line {line}: not text in UTF-8 (byte 0x{data[at]:02x} at offset {at}); save it as "
            "UTF-8, if it is Latin-1 with: iconv -f latin1 -t utf-8"
        ) from None
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise UserError(
            f"{label}, line {line}: holds a NUL character; it is not text, or not UTF-8: save it as UTF-8"
        )
    return text


def read_bytes(path: str | Path, label: str | None = None) -> bytes:
    """Read the content of a file.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    label = label or str(path)
    if problem := file_problem(path):
        raise UserError(f"{label}: {problem}")
    try:
        return user_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{label}: it cannot be read ({error.strerror})") from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1.

    Only "\\n" ends a line: JSON strings may hold Unicode's other line separators, at which `splitlines` cuts.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def parse_json(text: str, label: str, *, line: int | None = None, constants: bool = False) -> Any:
    """Parse a JSON text; `line` is its number where the text is one line of a file.

    `constants` accepts NaN and Infinity, which Python writes although JSON does not have them.

    Raises:
        UserError: it is not JSON, or has a key twice; names the line.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=float if constants else _refuse_constant
        )
    except json.JSONDecodeError as error:
        line = line or error.lineno
        why = f"{error.msg[0].lower()}{error.msg[1:]} at column {error.colno}"
        if error.msg == "Extra data":
            why = f"more than one value; the second begins at column {error.colno}"
    except RecursionError:
        why = "nested too deeply"
    except ValueError as error:
        why = str(error)
    raise UserError(f"{label}{'' if line is None else f', line {line}'}: not JSON ({why})") from None


def read_json(path: str | Path, label: str | None = None, *, constants: bool = False) -> Any:
    """Read a JSON file; raises UserError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, label), label or str(path), constants=constants)


def read_parquet(path: str | Path, label: str | None = None) -> list[dict[str, Any]]:
    """Read the rows of a parquet file.

    Raises:
        UserError: there is no such file, or it cannot be read as parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = label or str(path)
    if problem := file_problem(path):
        raise UserError(f"{label}: {problem}")
    try:
        with pq.ParquetFile(
            user_path(path)
        ) as file:  # not read_table, which takes a=b in a path for a column
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"it has the column {twice[0]!r} twice")
            rows: list[dict[str, Any]] = file.read().to_pylist()
            return rows
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        why = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"{label}: it cannot be read as parquet ({why}); write it again, or as json lines"
        ) from None


def describe(value: Any) -> str:
    """Describe a value in JSON terms, briefly, for a message."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:3])) or 'nothing'}{' …' * (len(value) > 3)}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        finite = abs(value) < math.inf
        return f"the number {value!r}"[:_SHOWN] if finite else "NaN" if value != value else str(value)
    if isinstance(value, str):
        return f"the text {value if len(value) <= _SHOWN else value[: _SHOWN - 1] + '…'!r}"
    return f"{type(value).__name__} {str(value)[:_SHOWN]!r}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"an object has the key {twice!r} twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null, or leave the key out")
