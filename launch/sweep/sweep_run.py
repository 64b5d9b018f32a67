"""One run of a sweep, and what tells it from the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its overrides, and its folder or the reason why there is none.

    `baselines`: the runs that it is compared with, by name: target and retain model. `code`: the exit code,
    None while it runs. `value`: what a sweeper optimises (launch/sweep/objective.py). `warnings`: those of
    the run and of the runs made for it. `results`: those at its end; another run with another evaluation may
    replace them in the same folder.
    """

    overrides: tuple[str, ...]
    directory: Path | None
    reason: str = ""
    baselines: tuple[tuple[str, Path], ...] = ()
    code: int | None = 0
    value: float | None = None
    feasible: bool | None = None
    warnings: tuple[str, ...] = ()
    results: Mapping[str, float | None] | None = None


def labels(runs: Sequence[SweepRun]) -> list[str]:
    """Return for each run the overrides that not all runs share, without the paths of their keys."""
    return [" ".join(map(brief, own)) or "run" for own in _not_shared([run.overrides for run in runs])]


def varying(jobs: Sequence[Sequence[str]], command: Sequence[str] = ()) -> list[str]:
    """Return for each job the overrides that not all jobs share, as typed, without those of the command."""
    return [" ".join(o.lstrip("+") for o in own if o not in command) for own in _not_shared(jobs)]


def _not_shared(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[override for override in job if override not in shared] for job in jobs]


def brief(override: str) -> str:
    """`method=npo` as `npo`, `++seed=1` as `seed=1`, `++method.forget.beta=0.1` as `beta=0.1`."""
    key, _, value = override.partition("=")
    if "." not in key and not key.startswith("+"):
        return value
    if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value):  # from a sampler
        value = f"{float(value):.4g}"
    return f"{key.lstrip('+').rpartition('.')[2]}={value}"
