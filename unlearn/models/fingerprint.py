"""Identify a model's files without loading them."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn.models.locate import CheckpointSource

_WHOLE = 256 << 20  # weights files up to this many bytes are hashed in full
_BLOCKS, _BLOCK = 64, 64 << 10
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
        for i in range(_BLOCKS):
            stream.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            sample.update(stream.read(_BLOCK))
    return sample.hexdigest()
