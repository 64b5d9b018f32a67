"""The models that metrics are tried on: with the knowledge, without it, and unlearned ones under attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from launch.report.compare.discover import baselines_of
from launch.report.compare.runs import ComparedRun, read_run
from launch.report.discover import LeftOut, paths_of, run_directories
from launch.report.run_files import Results
from launch.report.run_groups import Unusable
from unlearn.errors import UserError

_NOT_UNLEARNED = ("none", "finetune", "reinforce")


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model's results with its attacks, and those of its retain model (empty: unknown)."""

    name: str
    results: Results = field(repr=False)
    retain: Results = field(repr=False)


@dataclass
class Pool:
    """Results by the run's name of models with the knowledge and without; unlearned ones; what is left
    out."""

    known: dict[str, Results] = field(default_factory=dict)
    unknown: dict[str, Results] = field(default_factory=dict)
    unlearned: list[Unlearned] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_pool(arguments: Sequence[str], known: Sequence[str] = (), unknown: Sequence[str] = ()) -> Pool:
    """Read the runs under directories and patterns, and the evaluations that they were compared with.

    Targets have the knowledge and retain models do not. `known` and `unknown` are patterns of the names of
    further runs of either kind, such as evaluations of models of your own.

    Raises:
        UserError: nothing is there, a pattern fits no run, or a pool is empty.
    """
    pool = Pool()
    runs: dict[Path, ComparedRun] = {}
    unusable: set[Path] = set()
    for path in _directories(arguments):
        _read(path, runs, unusable, pool)
    for run in list(runs.values()):
        for kind, path in baselines_of(run):
            _read(path, runs, unusable, pool)
            if path in runs:  # also where it was made on its own before
                runs[path] = replace(runs[path], kind=kind)
    named = {"known": known, "unknown": unknown}
    for option, patterns in named.items():
        for pattern in patterns:
            if not any(fnmatchcase(run.name, pattern) for run in runs.values()):
                raise UserError(f"--{option} {pattern}: no run has such a name")
    for run in runs.values():
        _place(run, runs, named, pool)
    for option, models, what in (("known", pool.known, "target"), ("unknown", pool.unknown, "retain model")):
        if not models:
            raise UserError(
                f"no evaluation of a {what} in {', '.join(arguments)}: name models with --{option}, or make "
                "the runs with eval.compare=true"
            )
    return pool


def _directories(arguments: Sequence[str]) -> Iterator[Path]:
    for argument in arguments:
        paths = [path for path in paths_of(argument) if path.is_dir()]
        if not paths:
            raise UserError(f"{argument}: no such directory or pattern")
        for path in paths:
            yield from (each.resolve() for each in run_directories(path))


def _read(path: Path, runs: dict[Path, ComparedRun], unusable: set[Path], pool: Pool) -> None:
    if path in runs or path in unusable:
        return
    try:
        runs[path] = read_run(path)
    except Unusable as reason:
        unusable.add(path)
        pool.left_out.append(LeftOut(path.name, str(reason)))


def _place(
    run: ComparedRun, runs: dict[Path, ComparedRun], named: dict[str, Sequence[str]], pool: Pool
) -> None:
    if any(fnmatchcase(run.name, pattern) for pattern in named["known"]) or run.kind == "target":
        pool.known[run.name] = run.results
    elif any(fnmatchcase(run.name, pattern) for pattern in named["unknown"]) or run.kind == "retain model":
        pool.unknown[run.name] = run.results
    elif run.method in _NOT_UNLEARNED:
        pool.left_out.append(
            LeftOut(run.name, "a model that was not unlearned: say which it is with --known or --unknown")
        )
    else:
        retain = next(
            (runs[path] for kind, path in baselines_of(run) if kind == "retain model" and path in runs), None
        )
        pool.unlearned.append(Unlearned(run.name, run.results, {} if retain is None else retain.results))
