"""From what was given on the command line to the runs of a comparison, and what is left out of it and why."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import NamedTuple

from launch.report.compare.runs import ANCHORS, ComparedRun, Kind, Unusable, differing, read_run
from launch.report.compare.wandb_exports import ENDINGS, read_export
from launch.report.compare.wandb_offline import read_offline
from unlearn.errors import UserError, did_you_mean

_MARKS = ("config.yaml", "results.json", "history.jsonl", "run.log", ".lock")
_DEPTH = 4
_NOT_ENTERED = ("cache", "__pycache__", "node_modules")


Place = tuple[Kind, Path]
"""The directory of an anchor."""


class LeftOut(NamedTuple):
    name: str
    reason: str


@dataclass
class Found:
    runs: list[ComparedRun] = field(default_factory=list)
    anchors: list[ComparedRun] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find(given: Sequence[str], named: dict[Kind, str] | None = None) -> Found:
    """The runs under these directories, patterns and exports.

    named: the directory or the name of the run that is the target or the retain model, by kind.

    Raises:
        UserError: nothing is there, or nothing in it can be compared.
    """
    found = Found()
    every: list[ComparedRun] = []
    for place in _places(given):
        for each in _read(place):
            if isinstance(each, ComparedRun):
                every.append(each)
            else:
                found.left_out.append(LeftOut(*each))
    every += _named_directories(named or {}, every)
    beside = [place for run in every for place in _places_beside(run)]
    every = [replace(run, kind=_kind(run, set(beside), named or {})) for run in every]
    every = [replace(run, beside={kind: str(path) for kind, path in _places_beside(run)}) for run in every]
    every += _anchors_beside(every, beside)
    keys = differing(every)
    seen: dict[tuple[str, ...], ComparedRun] = {}
    for number, run in enumerate(every):
        seed = repr(run.seed) if run.seed is not None else f"run {number}"
        mark = (run.kind, run.method, seed, *(repr(run.settings.get(key)) for key in keys))
        first = seen.setdefault(mark, run)
        if first is not run:
            found.left_out.append(LeftOut(run.name, _twice(run, first)))
    found.runs = [run for run in seen.values() if run.kind == "run"]
    found.anchors = [run for run in seen.values() if run.kind != "run"]
    if not found.runs:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in found.left_out[:10])
        others = f" and {len(found.left_out) - 10} more" if len(found.left_out) > 10 else ""
        raise UserError(f"nothing to compare in {', '.join(given)}:{reasons or ' no run in it'}{others}")
    return found


def _twice(run: ComparedRun, first: ComparedRun) -> str:
    what = "the same configuration and seed" if run.kind == "run" else f"the same {run.kind}"
    named = run.kind == "run" and run.method == "none"  # of exports, which do not say what was evaluated
    hint = "; name the target and the retain model with --target and --retain" if named else ""
    return f"{what} as {first.name}{hint}"


def _places(given: Sequence[str]) -> list[Path]:
    """Run directories, folders of offline runs and files of exports, each once."""
    places: dict[Path, None] = {}
    for each in given:
        paths = [Path(path) for path in sorted(glob(str(Path(each).expanduser())))]
        if not paths:
            raise UserError(f"{each}: no such directory, file or pattern")
        for path in paths:
            if path.is_file() and path.suffix not in ENDINGS:
                if len(paths) > 1:  # of a pattern: a file beside the runs
                    continue
                raise UserError(
                    f"{path} is no run directory; of files, exports {', '.join(ENDINGS)} are read"
                )
            inside = [path] if path.is_file() else list(_directories(path, 0))
            places |= dict.fromkeys(found.resolve() for found in inside)
    return list(places)


def _directories(path: Path, depth: int) -> Iterator[Path]:
    """The run directory itself, or those in it; an empty directory counts as one that never began."""
    inside = sorted(os.scandir(path), key=lambda entry: entry.name)
    names = [entry.name for entry in inside]
    if not inside or any(name in _MARKS or name.endswith(".wandb") for name in names):
        yield path
    elif depth < _DEPTH:
        for entry in inside:
            hidden = entry.name.startswith(".") or entry.name in _NOT_ENTERED
            if not hidden and entry.is_dir():
                yield from _directories(Path(entry.path), depth + 1)


def _read(place: Path) -> Iterator[ComparedRun | tuple[str, str]]:
    if place.is_file():
        yield from read_export(place)
        return
    try:
        offline = not (place / "config.yaml").is_file() and any(place.glob("*.wandb"))
        yield read_offline(place) if offline else read_run(place)
    except Unusable as reason:
        yield place.name, str(reason)


def _named_directories(named: dict[Kind, str], every: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The anchors that were named by a directory which is not among the runs given."""
    found = []
    for kind, name in named.items():
        if any(_is(run, name) for run in every):
            continue
        if not Path(name).is_dir():
            hint = did_you_mean(name, [run.name for run in every])
            raise UserError(f"{name}, named as the {kind}: no such directory, and no run of this name{hint}")
        try:
            found.append(read_run(Path(name).resolve()))
        except Unusable as reason:
            raise UserError(f"{name}, named as the {kind}: {reason}") from reason
    return found


def _is(run: ComparedRun, name: str) -> bool:
    return run.name == name or (run.path is not None and run.path == Path(name).resolve())


def _kind(run: ComparedRun, beside: Collection[Place], named: Mapping[Kind, str]) -> Kind:
    """What was named so, what other runs were measured beside, what its own directory says."""
    for kind, name in named.items():
        if _is(run, name):
            return kind
    return next((kind for kind in ANCHORS if (kind, run.path) in beside), run.kind)


def _anchors_beside(every: Sequence[ComparedRun], beside: Sequence[Place]) -> list[ComparedRun]:
    """The anchors that the runs were measured beside and that were not given."""
    known = {run.path for run in every}
    found = []
    for kind, path in dict.fromkeys(beside):
        if path not in known:
            try:
                found.append(replace(read_run(path), kind=kind))
            except Unusable:  # the runs stand without it
                continue
    return found


def _places_beside(run: ComparedRun) -> list[Place]:
    """Where its anchors are: where they were, or beside the run where both were moved together."""
    found: list[Place] = []
    for kind in ANCHORS:
        place = run.beside.get(kind.split()[0], run.beside.get(kind))
        if place is not None and run.path is not None:
            candidates = (Path(place).expanduser(), run.path.parent / Path(place).name)
            found += [(kind, path.resolve()) for path in candidates if path.is_dir()][:1]
    return found
