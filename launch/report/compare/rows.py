"""The rows of a comparison: runs that differ in the seed alone, by task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eval.judgement.judge import with_judgement
from launch.report.compare.labels import Mark, label, mark, numbered, telling
from launch.report.compare.runs import ANCHORS, TASK, ComparedRun, Kind, differing
from launch.report.run_files import Results
from launch.report.settings import shortest
from launch.report.statistics import Mean, mean


@dataclass(frozen=True)
class Row:
    """`varied`: its settings among those in which rows differ. `label` tells it from others of its task."""

    kind: Kind
    method: str
    label: str
    task: str
    varied: Mapping[str, Any]
    runs: Sequence[ComparedRun] = field(repr=False)

    def mean(self, key: str) -> Mean:
        return mean(key, [run.results for run in self.runs])


@dataclass(frozen=True)
class Comparison:
    """Rows by task and method, anchors apart. `keys`: all settings in which runs differ, by short name.

    `minor`: those of them that come with the method. `seedless`: runs of which no seed is known.
    """

    rows: Sequence[Row]
    anchors: Sequence[Row]
    keys: Mapping[str, str]
    minor: Collection[str]
    metrics: Sequence[str]
    seedless: int = 0

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(row.task for row in self.rows))

    def of_task(self, task: str) -> tuple[list[Row], list[Row]]:
        """Anchors and rows."""
        anchors = [row for row in self.anchors if row.task == task]
        return anchors, [row for row in self.rows if row.task == task]


def compared(
    runs: Sequence[ComparedRun], anchors: Sequence[ComparedRun], metrics: Sequence[str],
    by: Sequence[str] | None = None,
) -> Comparison:  # fmt: skip
    """The runs in rows: by all of their settings but the seed or, with `by`, by these keys alone."""
    keys = differing(runs)
    names = shortest(sorted(keys))
    by_method = (differing([run for run in runs if run.method == name]) for name in {r.method for r in runs})
    within = {key for found in by_method for key in found}
    minor = {key for key in keys if key not in within and not TASK.fullmatch(key)}
    split = keys if by is None else [key for key in by if key != "method"]
    apart = by is None or "method" in by
    task_keys = [key for key in keys if TASK.fullmatch(key) and (by is None or key in by)]
    groups: dict[Mark, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault((run.method if apart else "", *mark(run, split)), []).append(run)
    firsts = [members[0] for members in groups.values()]
    tasks = _tasks(firsts, task_keys, names)
    alike: dict[Mark, list[ComparedRun]] = {}
    for run in firsts:
        alike.setdefault((run.method if apart else "", *mark(run, task_keys)), []).append(run)
    told = {place: _told(some, split, task_keys) for place, some in alike.items()}
    rows = []
    for members in groups.values():
        first = members[0]
        method, task = first.method if apart else "", mark(first, task_keys)
        text = f"{method} {label(first, told[method, *task], names)}".strip() or "all runs"
        varied = {key: first.value(key) for key in split}
        rows.append(Row("run", method, text, tasks[task], varied, members))
    rows = _in_order(rows)
    shown = sorted(keys, key=lambda key: (key in minor, not TASK.fullmatch(key), key))
    seedless = sum(run.seed is None for run in runs)
    by_name = {key: names[key] for key in shown}
    return Comparison(rows, _anchor_rows(anchors, rows), by_name, minor, metrics, seedless)


def _told(runs: Sequence[ComparedRun], split: Sequence[str], apart: Sequence[str]) -> list[str]:
    """The settings that tell the rows of a method and a task from each other."""
    differ = {*differing(runs), *(key for key in split if key == "seed")} - set(apart)
    return telling([key for key in split if key in differ], runs)


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """By task, method and settings; labels that are equal with a number."""
    rows = sorted(rows, key=lambda row: (row.task, row.method, [sortable(v) for v in row.varied.values()]))
    labels = [text.split("\n")[1] for text in numbered([f"{row.task}\n{row.label}" for row in rows])]
    return [replace(row, label=text) for row, text in zip(rows, labels, strict=True)]


def _tasks(runs: Sequence[ComparedRun], keys: Sequence[str], names: Mapping[str, str]) -> dict[Mark, str]:
    """A label for each task."""
    firsts = {mark(run, keys): run for run in runs}
    told = telling(keys, list(firsts.values()))
    return dict(zip(firsts, numbered([label(run, told, names) for run in firsts.values()]), strict=True))


def _anchor_rows(anchors: Sequence[ComparedRun], rows: Sequence[Row]) -> list[Row]:
    """Target and retain model of each task, judged beside each other: their files know no others.

    Those that the runs of the task were measured beside or, where these are not there, of the same settings;
    one that fits no task, as it may be when it was named, is of every one.
    """
    tasks = {row.task: [run for each in rows if each.task == row.task for run in each.runs] for row in rows}
    keys = [
        key
        for key in differing([*anchors, *(r for runs in tasks.values() for r in runs)])
        if TASK.fullmatch(key)
    ]
    found = []
    for kind in ANCHORS:
        some = [run for run in anchors if run.kind == kind]
        fits = {task: _fitting(some, runs, keys) for task, runs in tasks.items()}
        if not any(fits.values()):
            fits = dict.fromkeys(tasks, some)
        found += [Row(kind, "", kind, task, {}, members) for task, members in fits.items() if members]
    return [_judged(row, found) for row in found]


def _fitting(
    anchors: Sequence[ComparedRun], runs: Sequence[ComparedRun], keys: Sequence[str]
) -> list[ComparedRun]:
    beside = {path for run in runs for path in run.beside.values()}
    firsts = {mark(run, keys): run for run in runs}.values()
    return [a for a in anchors if str(a.path) in beside] or [
        a
        for a in anchors
        if any(all(a.value(k) == r.value(k) for k in keys if a.knows(k) and r.knows(k)) for r in firsts)
    ]


def _judged(row: Row, rows: Sequence[Row]) -> Row:
    if not any(key.startswith("judged/") for run in row.runs for key in run.results):
        return row
    beside: dict[str, Results] = {
        other.kind: other.runs[0].results for other in rows if other.task == row.task
    }
    runs = [
        replace(run, results=with_judgement({**beside, row.kind: run.results})[row.kind]) for run in row.runs
    ]
    return replace(row, runs=runs)


def sortable(value: Any) -> tuple[int, float, str]:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return (0 if value is None else 1 if known else 2, float(value) if known else 0.0, str(value))
