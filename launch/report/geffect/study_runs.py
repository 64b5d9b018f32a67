"""Runs that the G-effect probe watched: from their directories, and kept in an archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launch.report.discover import LeftOut, paths_of, run_directories
from launch.report.geffect import summaries
from launch.report.geffect.files import PREFIX, effect_rows, tables
from launch.report.geffect.token_charts import MAX_STEPS, rank_correlation
from launch.report.packed import (
    ENDING,
    is_archive,
    read_packed,
    rounded,
    tuples,
    without_folders,
    write_packed,
)
from launch.report.run_groups import (
    RunSettings,
    Unusable,
    configuration,
    first_of_equals,
    method_name,
    sections_of,
)
from launch.report.settings import flat, settings_of
from launch.report.traces import Row, number
from unlearn.errors import UserError
from unlearn.run_dir import RunDir

_PROBE_SETTINGS = ("probe.examples", "probe.mode", "probe.boundaries")
WEIGHT_HARM = "retain"
"""The column of the tokens' tables with which the study correlates their weights."""
_CONTENT = "measurements"


@dataclass(frozen=True)
class StudyRun(RunSettings):
    """A run with the rows of its history that were probed.

    `correlations`: the weights' by column, of a run that was read from an archive, which keeps no tokens.
    """

    rows: Sequence[Row]
    correlations: Mapping[str, float | None] = field(default_factory=dict, kw_only=True)

    def mean(self, key: str) -> float | None:
        """Return the mean over the probed steps."""
        known = summaries.finite(self.rows, key)
        return float(np.mean(known)) if known else None

    def largest(self, key: str) -> float | None:
        """Return the largest absolute value over the probed steps."""
        return summaries.largest(self.rows, key)

    def negative(self, key: str) -> float | None:
        """Return the share of the probed steps at which the value is below zero."""
        return summaries.negative(self.rows, key)

    def share(self, key: str, group: str) -> float | None:
        """Return the share of a group of layers in the absolute effects of all groups."""
        return summaries.shares(self.rows, key).get(group)

    def weight_correlation(self, column: str) -> float | None:
        """Return the rank correlation of the forget tokens' implicit weight with a column of their table.

        The mean over the probed steps, at most `MAX_STEPS` of them, at which the weights differ.
        """
        if self.path is None:
            return self.correlations.get(column)
        values = (rank_correlation(table, column) for table in self.tokens.values())
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def last(self, key: str) -> float | None:
        """Return the value at the last step that has one."""
        return next((v for row in reversed(self.rows) if (v := number(row.get(key))) is not None), None)

    @cached_property
    def tokens(self) -> Mapping[int, Any]:
        """The tables of tokens by step; {} for a run of an archive."""
        if self.path is None:
            return {}
        return tables(self.path, "tokens", limit=MAX_STEPS, columns=("set", "logp", "weight", "retain"))


def find_runs(arguments: Sequence[str]) -> tuple[list[StudyRun], list[LeftOut]]:
    """Return the probed runs of these directories, patterns and archives, and what is left out and why.

    Next to an archive, which names no folders, local paths in the settings are their last part.

    Raises:
        UserError: nothing is there, an archive cannot be read, or none of the runs was probed.
    """
    folders: dict[Path, None] = {}
    archives: dict[Path, None] = {}
    for argument in arguments:
        paths = paths_of(argument)
        inside = [
            run for path in paths if path.is_dir() for run in run_directories(path) if any(run.iterdir())
        ]
        packed = [path for path in paths if is_archive(path)]
        if not inside and not packed:
            what = (
                f"no run in it, and no archive ({ENDING})"
                if paths
                else "no such directory, archive or pattern"
            )
            raise UserError(f"{argument}: {what} (a run directory has a history.jsonl)")
        folders |= dict.fromkeys(path.resolve() for path in inside)
        archives |= dict.fromkeys(path.resolve() for path in packed)
    runs = [run for archive in archives for run in read_archive(archive)]
    left_out = []
    for folder in folders:
        try:
            run = read_run(folder)
            runs.append(replace(run, settings=without_folders(run.settings)) if archives else run)
        except Unusable as reason:
            left_out.append(LeftOut(folder.name, str(reason)))
    first = first_of_equals(runs, [""] * len(runs))
    distinct = []
    for run, earlier in zip(runs, first, strict=True):
        if earlier is run:
            distinct.append(run)
        else:
            left_out.append(LeftOut(run.name, f"the same configuration and seed as {earlier.name}"))
    if not distinct:
        raise UserError(
            f"no G-effect in {', '.join(arguments)}: its history.jsonl has no geffect/… keys. "
            "Make the runs with probe=geffect."
        )
    return distinct, left_out


def read_run(path: Path) -> StudyRun:
    """Read a run directory; of numbers the digits that an archive keeps, so that both give the same.

    Raises:
        Unusable: no step was probed, or a file cannot be read.
    """
    try:
        rows = [_kept(row) for row in effect_rows(RunDir(path).history_by_step())]
    except ValueError as error:
        raise Unusable(f"{RunDir(path).history.name} cannot be read: {error}") from error
    if not rows:
        raise Unusable("no G-effect in it")
    config = configuration(path)
    if method_name(config) == "none":  # saved models were probed under the objective of another method
        probed = (config.get("probe") or {}).get("method")
        if probed:
            method = probed if isinstance(probed, Mapping) else {"name": probed, "objective": probed}
            config = {**config, "method": method}
    every = flat(config)
    settings = settings_of(every) | {k: every[k] for k in _PROBE_SETTINGS if every.get(k) is not None}
    name = method_name(config) or path.name
    return StudyRun(
        path.name, name, settings, config.get("seed"), rows, path=path, sections=sections_of(config)
    )


def _kept(row: Row) -> Row:
    return {
        key: rounded(value) if isinstance(value, float) else value
        for key, value in row.items()
        if key.startswith(PREFIX) or key in ("step", "epoch")
    }


# -- the archive -------------------------------------------------------------------------------------------


def write_archive(path: Path, runs: Sequence[StudyRun]) -> None:
    """Write the measurements of runs, whole or not at all, without their tables of examples and tokens.

    Of runs that are under way nothing is kept: their place would be taken when they have ended.
    """
    ended = [run for run in runs if run.path is None or RunDir(run.path).results.is_file()]
    write_packed(path, _CONTENT, [_row(run) for run in sorted(ended, key=lambda run: run.name)])


def _row(run: StudyRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "method": run.method,
        "settings": without_folders(run.settings),
        "seed": run.seed,
        "rows": run.rows,
        "correlations": {WEIGHT_HARM: rounded(run.weight_correlation(WEIGHT_HARM))},
        "sections": None if run.sections is None else sorted(run.sections),
    }


def read_archive(path: Path) -> list[StudyRun]:
    """Return the runs of an archive.

    Raises:
        UserError: it is none of this program's, or of a later format.
    """
    return read_packed(path, _CONTENT, lambda row: StudyRun(**{**row, "settings": tuples(row["settings"])}))
