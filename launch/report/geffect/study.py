"""Runs with a G-effect probe compared: which of them differ in the seed alone, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launch.report.geffect.files import PREFIX, effect_rows, tables
from launch.report.geffect.token_charts import MOST_LOOKS, pairs
from launch.report.run_files import configuration, history
from launch.report.settings import flat, shortest, word
from launch.report.statistics import Interval, interval
from launch.report.traces import Row, number

# Of the configuration, beside the method: what makes numbers another thing to average over.
_OUTSIDE = (
    *("model.name", "dataset.name", "dataset.forget", "dataset.retain"),
    *("probe.examples", "probe.mode", "probe.boundaries", "hardware.dtype"),
)
_NOT_SETTINGS = ("name", "source")


@dataclass(frozen=True)
class StudyRun:
    """One run directory. `settings` are flat and dotted, without the seed."""

    path: Path
    method: str
    settings: Mapping[str, Any]
    seed: Any
    rows: Sequence[Row]

    @property
    def key(self) -> str:
        """The same for runs that differ in the seed alone."""
        known = sorted((name, repr(value)) for name, value in self.settings.items() if value is not None)
        return f"{self.method} {known}"

    def mean(self, key: str) -> float | None:
        """Over the steps looked at."""
        known = [v for row in self.rows if (v := number(row.get(key))) is not None and math.isfinite(v)]
        return float(np.mean(known)) if known else None

    def last(self, key: str) -> float | None:
        """At the last step that has it."""
        return next((v for row in reversed(self.rows) if (v := number(row.get(key))) is not None), None)

    @cached_property
    def tokens(self) -> Mapping[int, Any]:
        return tables(self.path, "tokens", most=MOST_LOOKS, columns=("set", "logp", "weight"))


@dataclass(frozen=True)
class Compared:
    """Runs that differ in nothing but the seed; `varied` are settings in which this method's runs differ."""

    label: str
    method: str
    objective: str
    varied: Mapping[str, Any]
    runs: Sequence[StudyRun] = field(repr=False)

    def mean(self, key: str) -> Interval:
        return interval(run.mean(key) for run in self.runs)

    def last(self, key: str) -> Interval:
        return interval(run.last(key) for run in self.runs)

    def by_step(self, key: str) -> dict[int, Interval]:
        steps = sorted({row["step"] for run in self.runs for row in run.rows})
        values = {
            s: interval(number(r.get(key)) for run in self.runs for r in run.rows if r["step"] == s)
            for s in steps
        }
        return {step: value for step, value in values.items() if value.n}  # fmt: skip

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Likelihood and implicit weight of the forget tokens, all steps and seeds together, [N] each."""
        parts = [pairs(table) for run in self.runs for table in run.tokens.values()]
        empty = (np.empty(0), np.empty(0))
        return tuple(np.concatenate(column) for column in zip(empty, *parts, strict=True))  # type: ignore[return-value]


def read_run(path: Path) -> StudyRun | None:
    """A run directory; None where no probe looked.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    rows = effect_rows(history(path))
    if not rows:
        return None
    _, config = configuration(path)
    method = config.get("method") or {}
    name = str(method.get("name", path.name))
    if name == "none":  # saved models were looked at under the objective of another method
        asked = (config.get("probe") or {}).get("method")
        method = asked if isinstance(asked, Mapping) else {"objective": asked}
        name = str(method.get("name") or asked) if asked else name
    found = {key: value for key, value in flat(method).items() if key not in _NOT_SETTINGS}
    every = flat(config)
    found |= {key: every[key] for key in _OUTSIDE if every.get(key) is not None}
    return StudyRun(path, name, found, config.get("seed"), rows)


def compared(runs: Sequence[StudyRun]) -> list[Compared]:
    """The runs by method and settings, those that differ in the seed alone together; in their own order."""
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    everywhere = differing([members[0] for members in groups.values()]) & set(_OUTSIDE)
    found = []
    for members in groups.values():
        first = members[0]
        alike = [m[0] for m in groups.values() if m[0].method == first.method]
        keys = [
            key
            for key in sorted(differing(alike) | everywhere)
            if key in first.settings or key not in _OUTSIDE
        ]
        varied = {key: first.settings.get(key) for key in keys}
        words = [f"{name}={word(varied[key])}" for key, name in shortest(keys).items()]
        label = f"{first.method} {', '.join(words)}".strip()
        found.append(Compared(label, first.method, _objective(first), varied, members))
    return found


def differing(runs: Sequence[StudyRun]) -> set[str]:
    """Settings that not all of the runs share."""
    keys = {key for run in runs for key in run.settings}
    return {key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1}


def _objective(run: StudyRun) -> str:
    """What is descended on each set, with the weighting where there is one."""
    parts = []
    for slot in ("forget", "template", "retain", "full"):
        name = run.settings.get(f"{slot}.objective")
        weighting = run.settings.get(f"{slot}.weighting.name") or run.settings.get(f"{slot}.weighting")
        if name is not None:
            parts.append(f"{slot} {name}" + (f" × {weighting}" if weighting else ""))
    return ", ".join(parts)


# -- the table ---------------------------------------------------------------------------------------------

_COLUMNS = (
    ("unlearning effect", "geffect/unlearn", "mean"),
    ("retaining effect", "geffect/retain", "mean"),
    ("unlearning cosine", "geffect/unlearn_cosine", "mean"),
    ("retaining cosine", "geffect/retain_cosine", "mean"),
    ("conflict", "geffect/conflict", "mean"),
    ("forget risk, last", "geffect/risk_forget", "last"),
    ("retain risk, last", "geffect/risk_retain", "last"),
    ("explained", "geffect/check/explained", "mean"),
    ("trusted steps", "geffect/trusted", "mean"),
)


def summary(groups: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: over the steps looked at the mean, of the risks the last; then over seeds."""
    shown = [c for c in _COLUMNS if any(run.last(c[1]) is not None for group in groups for run in group.runs)]
    rows = []
    for group in groups:
        values = [group.mean(key) if how == "mean" else group.last(key) for _, key, how in shown]
        rows.append([group.label, group.objective, str(len(group.runs)), *map(str, values)])
    return ["method", "objective", "n", *(head for head, _, _ in shown)], rows


def long_rows(groups: Sequence[Compared]) -> tuple[list[str], list[list[Any]]]:
    """Heads and a row for each run and step, with all that the probe logged."""
    every = [(group.label, run, row) for group in groups for run in group.runs for row in run.rows]
    keys = sorted({key for _, _, row in every for key in row if key.startswith(PREFIX)})
    rows = [
        [label, run.path.name, run.seed, row["step"], row.get("epoch"), *(row.get(key) for key in keys)]
        for label, run, row in every
    ]
    return ["method", "run", "seed", "step", "epoch", *keys], rows
