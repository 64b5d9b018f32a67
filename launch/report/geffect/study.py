"""Compare runs by their G-effect: read them, average over seeds, tabulate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launch.report.discover import LeftOut, paths_of, run_directories
from launch.report.geffect import summaries
from launch.report.geffect.files import PREFIX, effect_rows, tables
from launch.report.geffect.token_charts import MAX_STEPS, pairs, rank_correlation
from launch.report.labels import label
from launch.report.run_groups import (
    RunSettings,
    Unusable,
    configuration,
    differing,
    first_of_equals,
    grouped,
    method_name,
    sections_of,
)
from launch.report.settings import flat, settings_of, shortest
from launch.report.statistics import Interval, interval
from launch.report.traces import Row, number
from unlearn.config import SLOTS
from unlearn.errors import UserError
from unlearn.run_dir import RunDir

_PROBE_SETTINGS = ("probe.examples", "probe.mode", "probe.boundaries")


@dataclass(frozen=True)
class StudyRun(RunSettings):
    """A run with the rows of its history that were probed."""

    rows: Sequence[Row]

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

    def shallow(self, key: str) -> float | None:
        """Return the share of the shallow layers in the absolute effects of all groups of layers."""
        return summaries.shares(self.rows, key).get("shallow")

    def weight_correlation(self, column: str) -> float | None:
        """Return the rank correlation of the forget tokens' implicit weight with a column of their table.

        The mean over the probed steps, at most `MAX_STEPS` of them, at which the weights differ.
        """
        values = (rank_correlation(table, column) for table in self.tokens.values())
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def last(self, key: str) -> float | None:
        """Return the value at the last step that has one."""
        return next((v for row in reversed(self.rows) if (v := number(row.get(key))) is not None), None)

    @cached_property
    def tokens(self) -> Mapping[int, Any]:
        """The tables of tokens by step."""
        assert self.path is not None
        return tables(self.path, "tokens", limit=MAX_STEPS, columns=("set", "logp", "weight", "retain"))


@dataclass(frozen=True)
class Compared:
    """Runs that differ in the seed alone; `varied`: the settings in which the runs of this method differ."""

    label: str
    method: str
    objective: str
    varied: Mapping[str, Any]
    runs: Sequence[StudyRun] = field(repr=False)

    def over_seeds(self, of: Callable[[StudyRun, str], float | None], key: str) -> Interval:
        """Return a summary of each run's values of a key, such as `StudyRun.mean`, averaged over seeds."""
        return interval(of(run, key) for run in self.runs)

    def mean(self, key: str) -> Interval:
        """Return the mean over the steps, averaged over seeds."""
        return self.over_seeds(StudyRun.mean, key)

    def by_step(self, key: str) -> dict[int, Interval]:
        """Return the values by step, averaged over seeds."""
        steps = sorted({row["step"] for run in self.runs for row in run.rows})
        values = {
            s: interval(number(r.get(key)) for run in self.runs for r in run.rows if r["step"] == s)
            for s in steps
        }
        return {step: value for step, value in values.items() if value.n}

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return likelihood and implicit weight of the forget tokens of all steps and seeds, [N] each."""
        parts = [pairs(table) for run in self.runs for table in run.tokens.values()]
        empty = (np.empty(0), np.empty(0))
        return tuple(np.concatenate(column) for column in zip(empty, *parts, strict=True))  # type: ignore[return-value]


def find_runs(arguments: Sequence[str]) -> tuple[list[StudyRun], list[LeftOut]]:
    """Return the probed runs under these directories and patterns, and what is left out and why.

    Raises:
        UserError: nothing is there, or none of the runs was probed.
    """
    folders: dict[Path, None] = {}
    for argument in arguments:
        paths = [path for path in paths_of(argument) if path.is_dir()]
        inside = [run for path in paths for run in run_directories(path) if any(run.iterdir())]
        if not inside:
            what = "no run in it" if paths else "no such directory or pattern"
            raise UserError(f"{argument}: {what} (a run directory has a history.jsonl)")
        folders |= dict.fromkeys(path.resolve() for path in inside)
    runs = []
    left_out = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
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
    """Read a run directory.

    Raises:
        Unusable: no step was probed, or a file cannot be read.
    """
    try:
        rows = effect_rows(RunDir(path).history_by_step())
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


def compared(runs: Sequence[StudyRun]) -> list[Compared]:
    """Group runs that differ in the seed alone, in order of their first run."""
    groups = grouped(runs, differing(runs))
    firsts = [members[0] for members in groups]
    outside = {key for key in differing(firsts) if not key.startswith("method.")}
    rows = []
    for members in groups:
        first = members[0]
        of_method = {*differing([run for run in firsts if run.method == first.method])}
        keys = [
            key for key in sorted(of_method | outside) if key in first.settings or key.startswith("method.")
        ]
        varied = {key: first.settings.get(key) for key in keys}
        text = f"{first.method} {label(first, keys, shortest(keys))}".strip()
        rows.append(Compared(text, first.method, _objective(first), varied, members))
    return rows


def _objective(run: StudyRun) -> str:
    """The objective of each set with its weighting."""
    parts = []
    for slot in SLOTS:
        name = run.settings.get(f"method.{slot}.objective")
        weighting = run.settings.get(f"method.{slot}.weighting.name")
        weighting = weighting or run.settings.get(f"method.{slot}.weighting")
        if name is not None:
            parts.append(f"{slot} {name}" + (f" × {weighting}" if weighting else ""))
    return ", ".join(parts)


# -- the table ---------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, str, Callable[[StudyRun, str], float | None]], ...] = (
    ("unlearning effect", "geffect/unlearn", StudyRun.mean),
    ("largest unlearning effect", "geffect/unlearn", StudyRun.largest),
    ("shallow share", "geffect/unlearn", StudyRun.shallow),
    ("retaining effect", "geffect/retain", StudyRun.mean),
    ("retaining effect < 0", "geffect/retain", StudyRun.negative),
    ("unlearning cosine", "geffect/unlearn_cosine", StudyRun.mean),
    ("retaining cosine", "geffect/retain_cosine", StudyRun.mean),
    ("conflict", "geffect/conflict", StudyRun.mean),
    ("weight–harm correlation", "retain", StudyRun.weight_correlation),
    ("forget risk, last", "geffect/risk_forget", StudyRun.last),
    ("retain risk, last", "geffect/risk_retain", StudyRun.last),
    ("explained", "geffect/check/explained", StudyRun.mean),
    ("trusted steps", "geffect/trusted", StudyRun.mean),
)


def summary(groups: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: a summary of each run's steps by column, averaged over seeds."""
    shown = [
        c for c in _COLUMNS if any(c[2](run, c[1]) is not None for group in groups for run in group.runs)
    ]
    rows = []
    for group in groups:
        values = [str(group.over_seeds(of, key)) for _, key, of in shown]
        rows.append([group.label, group.objective, str(len(group.runs)), *values])
    return ["method", "objective", "n", *(head for head, _, _ in shown)], rows


def long_rows(groups: Sequence[Compared]) -> tuple[list[str], list[list[Any]]]:
    """Return heads and a row per run and step with everything that the probe logged."""
    every = [(group.label, run, row) for group in groups for run in group.runs for row in run.rows]
    keys = sorted({key for _, _, row in every for key in row if key.startswith(PREFIX)})
    rows = [
        [text, run.name, run.seed, row["step"], row.get("epoch"), *(row.get(key) for key in keys)]
        for text, run, row in every
    ]
    return ["method", "run", "seed", "step", "epoch", *keys], rows
