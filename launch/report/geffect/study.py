"""Compare runs by their G-effect: average over seeds, tabulate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launch.report.geffect.files import PREFIX
from launch.report.geffect.study_runs import WEIGHT_HARM, StudyRun
from launch.report.geffect.token_charts import pairs
from launch.report.labels import label
from launch.report.run_groups import differing, grouped
from launch.report.settings import shortest
from launch.report.statistics import Interval, interval
from launch.report.traces import number
from unlearn.config import SLOTS


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


def _share(group: str) -> Callable[[StudyRun, str], float | None]:
    return lambda run, key: run.share(key, group)


_COLUMNS: tuple[tuple[str, str, Callable[[StudyRun, str], float | None]], ...] = (
    ("unlearning effect", "geffect/unlearn", StudyRun.mean),
    ("largest unlearning effect", "geffect/unlearn", StudyRun.largest),
    ("embedding share", "geffect/unlearn", _share("embedding")),
    ("shallow share", "geffect/unlearn", _share("shallow")),
    ("deep share", "geffect/unlearn", _share("deep")),
    ("retaining effect", "geffect/retain", StudyRun.mean),
    ("retaining effect < 0", "geffect/retain", StudyRun.negative),
    ("unlearning cosine", "geffect/unlearn_cosine", StudyRun.mean),
    ("retaining cosine", "geffect/retain_cosine", StudyRun.mean),
    ("conflict", "geffect/conflict", StudyRun.mean),
    ("weight–harm correlation", WEIGHT_HARM, StudyRun.weight_correlation),
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
