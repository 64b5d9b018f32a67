"""List folders of saved models for a probe, in order of their steps."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from unlearn.models.model_files import ADAPTER, CONFIG
from unlearn.paths import is_file, user_path


def saved_models(patterns: Sequence[str]) -> list[Path]:
    """Return the model folders that match the patterns, in their order; those of one pattern by number."""
    folders: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(path) for path in glob.glob(str(user_path(pattern)))]
        folders |= dict.fromkeys(sorted(filter(_has_model, paths), key=_by_number))
    return list(folders)


def steps_of(folders: Sequence[Path]) -> list[int]:
    """Return the steps of saved models: the number that ends each name (`checkpoint-15`), or 1, 2, 3 …"""
    ends = [re.search(r"(\d+)$", folder.name) for folder in folders]
    steps = [int(end[1]) for end in ends if end]
    if len(set(steps)) == len(folders):
        return steps
    return list(range(1, len(folders) + 1))


def _has_model(path: Path) -> bool:
    return is_file(path / CONFIG) or is_file(path / ADAPTER)


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]
