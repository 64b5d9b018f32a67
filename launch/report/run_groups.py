"""Runs by their settings: which settings differ, and which runs differ in the seed alone."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.configuration import import_plug_ins
from launch.run.config_file import read_config
from unlearn.files import BrokenFile
from unlearn.run_dir import RunDir

Mark = tuple[str, ...]
"""Equal for runs whose settings are equal."""


class Unusable(Exception):
    """Why a directory, or a line of an export, is not a run to compare."""


@dataclass(frozen=True)
class RunSettings:
    """What a run was made with. `settings` are flat and dotted, without seed, method name and null values.

    `sections`: the fields that the sections of its configuration have, as `method.auto_lr`; None stands for
    all. A field that is absent came with a later release, so its value is unknown.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    seed: Any
    path: Path | None = field(default=None, kw_only=True)
    sections: Collection[str] | None = field(default=None, kw_only=True)

    def value(self, key: str) -> Any:
        """Return a setting, or `method` or `seed`; None for one that the run does not have."""
        return {"method": self.method, "seed": self.seed}.get(key, self.settings.get(key))

    def knows(self, key: str) -> bool:
        """Tell whether the configuration has the setting, be it null."""
        return self.sections is None or ".".join(key.split(".")[:2]) in self.sections


R = TypeVar("R", bound=RunSettings)


def differing(runs: Sequence[RunSettings]) -> list[str]:
    """Return the settings in which runs differ, among those runs whose configuration has them."""
    values: dict[str, set[str]] = {key: set() for run in runs for key in run.settings}
    for run in runs:
        for key, distinct in values.items():
            if run.knows(key):
                distinct.add(repr(run.settings.get(key)))
    return sorted(key for key, distinct in values.items() if len(distinct) > 1)


def mark(run: RunSettings, keys: Sequence[str]) -> Mark:
    """Return the values of these settings as text."""
    return tuple(repr(run.value(key)) for key in keys)


def grouped(runs: Sequence[R], keys: Sequence[str], *, by_method: bool = True) -> list[list[R]]:
    """Group runs that share the method and the values of these settings, in order of their first run."""
    groups: dict[Mark, list[R]] = {}
    for run in runs:
        groups.setdefault((run.method if by_method else "", *mark(run, keys)), []).append(run)
    return list(groups.values())


def first_of_equals(runs: Sequence[R], kinds: Sequence[Hashable]) -> list[R]:
    """Return for each run the first one of the same kind with the same configuration and seed: mostly itself.

    A run of which no seed is known equals no other.
    """
    keys = differing(runs)
    first: dict[Hashable, R] = {}
    return [
        first.setdefault(
            (
                kind,
                run.method,
                repr(run.seed) if run.seed is not None else f"run {number}",
                *(repr(run.settings.get(key)) for key in keys),
            ),
            run,
        )
        for number, (run, kind) in enumerate(zip(runs, kinds, strict=True))
    ]


def configuration(path: Path) -> dict[str, Any]:
    """Return the configuration of a run directory, and import the plug-ins that it names.

    Raises:
        Unusable: there is none, or it cannot be read.
    """
    try:
        config = read_config(RunDir(path))
    except FileNotFoundError:
        what = "the directory is empty" if not any(path.iterdir()) else "no config.yaml in it"
        raise Unusable(f"{what}: no run of this program, or one that never began") from None
    except BrokenFile as error:
        raise Unusable(f"config.yaml cannot be read: {error.why}") from error
    import_plug_ins(config)
    return config


def sections_of(config: Mapping[str, Any]) -> set[str]:
    """Return the fields of the sections of a configuration, as `method.auto_lr`."""
    return {f"{name}.{key}" for name, part in config.items() if isinstance(part, Mapping) for key in part}


def method_name(config: Mapping[str, Any]) -> str:
    """Return the name of the method; "" where there is none."""
    method = config.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return str(name) if name else ""
