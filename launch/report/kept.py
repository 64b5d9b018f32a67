"""Archives of runs, one packed file: results, settings, processor and seconds, no models and no folders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.metric_catalog import info
from launch.report.compare.runs import TASK
from launch.report.discover import LeftOut, paths_of, run_directories
from launch.report.geffect.files import PREFIX, layers_of_groups
from launch.report.geffect.run_effects import effects
from launch.report.packed import (
    ENDING,
    is_archive,
    read_packed,
    rounded,
    tuples,
    without_folders,
    write_packed,
)
from launch.report.run_files import Results
from launch.report.run_groups import RunSettings, Unusable, configuration, method_name
from launch.report.settings import flat, settings_of
from unlearn.errors import UserError
from unlearn.reading import describe
from unlearn.run_dir import RunDir

_CONTENT = "runs"
_TIMES = "run/seconds"
_MEASURED = ("eval.benchmarks.", "eval.variants.")
_DATA_SEED = "dataset.options.seed"
"""A seed too: runs on data that were drawn anew are averaged over."""
_ROLES = {"run": "run", "evaluate the target": "target", "evaluate the retain model": "retain model"}


@dataclass(frozen=True)
class KeptRun(RunSettings):
    """A run with its results. `role`: run, target, retain model, or what else it was made for."""

    role: str
    results: Results = field(repr=False)
    processor: str = ""

    @property
    def task(self) -> tuple[tuple[str, str], ...]:
        """Model, data and evaluation: runs compare where these are the same."""
        return tuple(sorted((key, repr(self.settings[key])) for key in self.settings if TASK.fullmatch(key)))

    @property
    def seconds(self) -> float:
        return self.number(_TIMES)

    @property
    def watched(self) -> bool:
        """Whether a probe measured effects in it."""
        return any(key.startswith(PREFIX) for key in self.results)

    def number(self, key: str) -> float:
        """Return a result, NaN where it is absent or null."""
        value = self.results.get(key)
        return math.nan if value is None else float(value)


def read(arguments: Sequence[str]) -> tuple[list[KeptRun], list[LeftOut]]:
    """Return the runs in directories, patterns and archives, and what is left out and why.

    Two runs of one configuration and seed, of which one was watched by a probe, become one. Of others a run
    in a directory counts before one in an archive, and the first of several.

    Raises:
        UserError: nothing is there, an archive cannot be read, or there is no run.
    """
    runs: list[KeptRun] = []
    archived: list[KeptRun] = []
    left_out: list[LeftOut] = []
    for argument in arguments:
        paths = paths_of(argument)
        if not paths:
            raise UserError(f"{argument}: no such directory, archive or pattern")
        for path in paths:
            if is_archive(path):
                archived += read_archive(path)
            elif path.is_dir():
                _read_directory(path, runs, left_out)
            elif len(paths) == 1:
                raise UserError(f"{path}: no run directory, and no archive ({ENDING})")
    if not any(run.role == "run" for run in (*runs, *archived)):
        raise UserError(
            f"{', '.join(arguments)}: no finished run in it; unlearn -m experiment=claims makes some"
        )
    return merged([*runs, *archived], left_out), left_out


def _read_directory(path: Path, runs: list[KeptRun], left_out: list[LeftOut]) -> None:
    for directory in run_directories(path):
        try:
            runs.append(read_run(directory))
        except Unusable as reason:
            left_out.append(LeftOut(directory.name, str(reason)))


def read_run(path: Path) -> KeptRun:
    """Read what is kept of a run directory.

    Raises:
        Unusable: it is no finished run, or a file of it cannot be read.
    """
    config = configuration(path)
    rundir = RunDir(path)
    if not rundir.results.is_file():
        raise Unusable(f"not complete, no {rundir.results.name}; the same command again continues it")
    try:
        watched = effects(rundir.history_by_step(), layers_of_groups(path))
        results: Results = {**rundir.read_results(), **watched}
        results |= _margin(results)
    except (OSError, ValueError) as error:
        raise Unusable(str(error)) from error
    settings = settings_of(flat(config))
    seed, drawn = config.get("seed"), settings.pop(_DATA_SEED, None)
    job, host = config.get("job"), config.get("host")
    role = str(job.get("role", "run")) if isinstance(job, Mapping) else "run"
    named = host if isinstance(host, Mapping) else {}
    return KeptRun(
        path.name,
        method_name(config) or path.name,
        without_folders(settings),
        seed if drawn in (None, seed) else f"{seed}, data {drawn}",
        role=_ROLES.get(role, role),
        results=_rounded(results),
        processor=str(named.get("processor") or named.get("machine") or ""),
    )


def _margin(results: Mapping[str, float | None]) -> Results:
    """Return what is kept minus what is left on the selection items, one number to choose a setting by."""
    kept, left = results.get("select/utility"), results.get("select/value")
    return {} if kept is None or left is None else {"select/margin": kept - left}


def _rounded(results: Mapping[str, float | None]) -> Results:
    kept = {key: value for key, value in results.items() if not info(key).is_detail}
    return {key: rounded(value) for key, value in sorted(kept.items())}


def merged(runs: Iterable[KeptRun], left_out: list[LeftOut]) -> list[KeptRun]:
    """Return the runs; a watched one and one that was not, of one configuration and seed, become one.

    It has names, results and seconds of both. Of others alike the first counts; the rest join `left_out`.
    Targets and retain models, whose configurations do not say which model they are of, stay apart.
    """
    distinct: dict[Any, KeptRun] = {}
    named: dict[str, Any] = {}  # the key of a run's name
    for run in runs:
        same = (
            run.role,
            run.method,
            repr(run.seed),
            tuple(sorted((k, repr(v)) for k, v in run.settings.items())),
        )
        key = same if run.role == "run" else (same, run.name)
        known_as = next((named[name] for name in run.name.split() if name in named), None)
        if run.role == "run" and known_as is not None and _is_evaluated_otherwise(run, distinct[known_as]):
            key = known_as
        named |= dict.fromkeys(run.name.split(), key)
        first = distinct.setdefault(key, run)
        names, known = set(run.name.split()), set(first.name.split())
        if names <= known:  # it is in two of the places, maybe with other benchmarks
            both = {**run.settings, **first.settings}
            distinct[key] = replace(first, results={**run.results, **first.results}, settings=both)
            continue
        if known < names:  # both, from an archive
            distinct[key] = replace(run, results={**run.results, **first.results, _TIMES: run.seconds})
        elif first.watched == run.watched:
            left_out.append(LeftOut(run.name, f"the same configuration and seed as {first.name}"))
        else:
            both = {_TIMES: float(np.nansum([first.seconds, run.seconds]))}
            name, results = f"{first.name} {run.name}", {**run.results, **first.results, **both}
            distinct[key] = replace(first, name=name, results=results)
    return list(distinct.values())


def _is_evaluated_otherwise(run: KeptRun, other: KeptRun) -> bool:
    """Whether two runs differ only in options of benchmarks and variants that one did not have."""
    differing = {
        key
        for key in run.settings.keys() | other.settings.keys()
        if run.settings.get(key) != other.settings.get(key)
    }
    both = run.settings.keys() & other.settings.keys()
    return all(key.startswith(_MEASURED) for key in differing) and not differing & both


# -- the archive -------------------------------------------------------------------------------------------


def write_archive(path: Path, runs: Sequence[KeptRun]) -> None:
    """Write the runs, whole or not at all; the same runs give the same bytes."""
    rows = [
        {key: value for key, value in asdict(run).items() if key not in ("path", "sections")}
        for run in sorted(runs, key=lambda run: (run.role, run.name))
    ]
    write_packed(path, _CONTENT, rows)


def read_archive(path: Path) -> list[KeptRun]:
    """Return the runs of an archive.

    Raises:
        UserError: it is none of this program's, or of a later format.
    """
    return read_packed(path, _CONTENT, _unpacked)


def _unpacked(row: Mapping[str, Any]) -> KeptRun:
    known = {each.name for each in fields(KeptRun)}  # earlier releases kept a fingerprint, too
    values = {key: row[key] for key in row if key in known} | {"settings": tuples(row["settings"])}
    if not isinstance(values.get("results"), Mapping):
        raise TypeError(f"the results of a run are {describe(values.get('results'))}, no object")
    for key, value in values["results"].items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"the result {key} of a run is {describe(value)}, no number")
    for key in ("name", "method", "role"):
        if not isinstance(values.get(key), str):
            raise TypeError(f"the {key} of a run is {describe(values.get(key))}, no text")
    return KeptRun(**values)
