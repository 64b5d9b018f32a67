"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour to write to (a file or a folder) that takes the place of `path` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON with NaN as null, replaced in one move."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None in place of NaN and infinity, which JSON does not have."""
    return {
        k: None
        if isinstance(v, float) and not math.isfinite(v)
        else finite(v)
        if isinstance(v, Mapping)
        else v
        for k, v in values.items()
    }


def digest(values: Any) -> str:
    """A short hash of JSON values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
