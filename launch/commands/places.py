"""Which file sets which key of a composed configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import OmegaConf

from launch.compose import PRIMARY, initialized
from launch.config_groups import CONFIGS, option_file
from launch.report.settings import flat

_PACKAGES = Path(__file__).resolve().parents[2]


def places(overrides: Sequence[str]) -> dict[str, Path]:
    """Return the file that sets each key, by dotted name; the last one of several, as Hydra merges them.

    overrides: as for `compose_run`, which has composed them without an error.
    """
    found: dict[str, Path] = {}
    with initialized() as hydra:
        parts = hydra.config_loader.compute_defaults_list(PRIMARY, list(overrides), RunMode.RUN).defaults
    for part in parts:
        group, _, option = (part.config_path or "").rpartition("/")
        file = option_file(group, option)
        if file.is_file():
            above = f"{part.package}." if part.package else ""
            values: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            found |= dict.fromkeys(flat({k: v for k, v in values.items() if k != "defaults"}, above), file)
    return found


def place_of(key: str, files: Mapping[str, Path]) -> Path | None:
    """Return the file that sets a key, or a key above it; None where the schema's default counts."""
    while key and key not in files:
        key = key.rpartition(".")[0]
    return files.get(key)


def shown(file: Path) -> str:
    """Return the path of a file as a user finds it: from the working directory, or within the project."""
    for folder in (Path.cwd(), CONFIGS.parent, _PACKAGES):
        if file.is_relative_to(folder):
            return str(file.relative_to(folder))
    return str(file)
