"""Find run directories from the arguments of a command, and tell what is left out and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import NamedTuple

from unlearn.errors import listed
from unlearn.run_dir import RunDir

_ANY = RunDir(Path())
_MARKS = {file.name for file in (_ANY.config, _ANY.results, _ANY.history, _ANY.log)} | {".lock"}
_DEPTH = 4
_NOT_ENTERED = ("cache", "__pycache__", "node_modules")


class LeftOut(NamedTuple):
    """A run that is not compared, and why."""

    name: str
    reason: str


def paths_of(argument: str) -> list[Path]:
    """Return the files and folders that a path or a pattern names; `~` is the home directory."""
    path = Path(argument).expanduser()
    matches = [Path(match) for match in sorted(glob(str(path)))]
    return matches or ([path] if path.exists() else [])


def run_directories(path: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the folder itself if it is a run directory, else the run directories in it.

    An empty folder counts as a run that never began, a folder with a `.wandb` file as an offline run.
    """
    inside = sorted(os.scandir(path), key=lambda entry: entry.name)
    names = {entry.name for entry in inside}
    if not inside or names & _MARKS or any(name.endswith(".wandb") for name in names):
        yield path
    elif depth < _DEPTH:
        for entry in inside:
            hidden = entry.name.startswith(".") or entry.name in _NOT_ENTERED
            if not hidden and entry.is_dir():
                yield from run_directories(Path(entry.path), depth + 1)


def left_out_lines(left_out: Sequence[LeftOut], limit: int | None = None) -> list[str]:
    """Return a line per reason with the names of the runs, at most `limit` of them."""
    lines = []
    for reason in dict.fromkeys(reason for _, reason in left_out):
        names = [name for name, why in left_out if why == reason]
        lines.append(f"{len(names)} left out, {reason}: {listed(names, limit or len(names))}")
    return lines
