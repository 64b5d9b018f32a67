"""Identify a model's files without loading them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn.models.locate import CheckpointSource

_WHOLE = 256 << 20  # weights files up to this many bytes are hashed in full
_BLOCK = 16 << 10  # of each tensor of a larger one: a training may have changed one tensor alone
_READ_IN_FULL = {".json", ".jinja", ".model", ".txt", ".py"}


def fingerprint(checkpoint: CheckpointSource) -> dict[str, Any]:
    """Return what identifies the files: a package's version, a hash of their content, or a hub revision.

    With an adapter, what identifies both.
    """
    if checkpoint.adapter is not None:
        base = fingerprint(replace(checkpoint, adapter=None))
        return {**base, "adapter": fingerprint(checkpoint.adapter)}
    if checkpoint.package is not None:
        return {"package": checkpoint.package, "version": importlib.metadata.version(checkpoint.package)}
    if checkpoint.folder is not None:
        return {"content": _content(checkpoint.folder)}
    return {"hub": f"{checkpoint.name}@{checkpoint.options.get('revision', 'main')}"}


def _content(folder: Path) -> str:
    """Hash the names and contents of configuration, tokenizer and weights; other files do not count."""
    total = hashlib.sha256()
    for file in sorted([*folder.iterdir(), *folder.glob("reinforced*/*")]):
        if file.suffix == ".safetensors" or file.suffix in _READ_IN_FULL:
            total.update(f"{file.relative_to(folder).as_posix()}\0{_digest(file)}\n".encode())
    return total.hexdigest()


def _digest(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if file.suffix != ".safetensors" or size <= _WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        sample = hashlib.sha256(str(size).encode())
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length)
        sample.update(header)
        for start, end in sorted(_places(header)):
            for place in sorted({start, max(start, (start + end - _BLOCK) // 2), max(start, end - _BLOCK)}):
                stream.seek(8 + length + place)
                sample.update(stream.read(min(_BLOCK, end - start)))
    return sample.hexdigest()


def _places(header: bytes) -> list[tuple[int, int]]:
    """Return where the tensors of a safetensors file begin and end, in bytes after the header.

    None of a file that is not one: reading the model reports it.
    """
    try:
        return [
            tuple(entry["data_offsets"]) for name, entry in json.loads(header).items() if name[:2] != "__"
        ]
    except (ValueError, AttributeError, KeyError, TypeError):
        return []
