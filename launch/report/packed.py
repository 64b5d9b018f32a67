"""Packed JSON, the form of the archives of runs: one file, without models and without folders."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unlearn.errors import UserError
from unlearn.files import replacing
from unlearn.reading import describe

ENDING = ".json.gz"
_FORMAT = 1
_DIGITS = 6
"""Significant digits that are kept. The page is made with them, so that runs and archive give the same."""
_MOST_BYTES = 1 << 29
"""Unpacked bytes that are read; the archive of a few thousand runs has some ten million."""
_MADE_BY = {"runs": "unlearn compare or claims", "measurements": "unlearn geffect"}
T = TypeVar("T")


def check_name(path: Path | None) -> None:
    """Refuse a name for an archive to write that would not be known as one.

    Raises:
        UserError: it does not end in ENDING.
    """
    if path is not None and not path.name.endswith(ENDING):
        raise UserError(f"--keep {path}: name a file that ends in {ENDING}")


def is_archive(path: Path) -> bool:
    """Tell whether a path is a file with the ending of archives."""
    return path.is_file() and path.name.endswith(ENDING)


def write_packed(path: Path, content: str, rows: list[dict[str, Any]]) -> None:
    """Write rows, whole or not at all, under the name of what they are; the same rows give the same bytes."""
    text = json.dumps({"format": _FORMAT, content: rows}, ensure_ascii=False, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_packed(path: Path, content: str, make: Callable[[dict[str, Any]], T]) -> list[T]:
    """Return what `make` makes of each row of that name.

    Raises:
        UserError: the file is none of this program's, damaged, of a later format, or holds something else.
    """
    try:
        stored = json.loads(_unpacked(path))
        rows, version = stored[content], stored["format"]
        if version == _FORMAT:
            return [make(row) for row in rows]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        writes = f"--keep of {_MADE_BY[content]} writes one"
        raise UserError(f"{path}: no archive of {content} ({error}); {writes}") from error
    raise UserError(f"{path}: format {version}, this program reads {_FORMAT}; make it again with --keep")


def _unpacked(path: Path) -> bytes:
    """Return the content of a gzip file, which a small one may have more of than fits into memory."""
    with gzip.open(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 20} MiB")
    return content


def rounded(value: float | None) -> float | None:
    """Return a number with the digits that are kept, None for one that is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the last part of each local path: an archive names no folders of a machine."""
    return {key: _last_part(value) for key, value in settings.items()}


def _last_part(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", ".")) else value


def tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a configuration has them: JSON's lists as tuples.

    Raises:
        TypeError: they are no object.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(f"the settings of a run are {describe(settings)}, no object")
    return {key: _tuple(value) for key, value in settings.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
