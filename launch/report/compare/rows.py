"""The rows of a comparison: runs that differ in the seed alone, by task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eval.judgement.aspects import PREFIX
from eval.judgement.judge import with_judgement
from launch.report.compare.runs import ANCHORS, TASK, ComparedRun, RunRole
from launch.report.labels import distinguishing, label, numbered
from launch.report.run_files import Results
from launch.report.run_groups import Mark, differing, grouped, mark
from launch.report.settings import judgement_of, shortest
from launch.report.statistics import Mean, mean


@dataclass(frozen=True)
class Row:
    """Runs that are averaged. `varied`: its values of the settings in which rows differ."""

    kind: RunRole
    method: str
    label: str
    task: str
    varied: Mapping[str, Any]
    runs: Sequence[ComparedRun] = field(repr=False)

    def mean(self, key: str) -> Mean:
        """Return the mean of a metric over the runs."""
        return mean(key, [run.results for run in self.runs])


@dataclass(frozen=True)
class Comparison:
    """Rows by task and method, and the anchors: targets and retain models.

    `keys`: the settings in which runs differ, with their short names. `minor`: those of them in which only
    methods differ, not the runs of one method. `seedless`: runs of which no seed is known.
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
        """Return the anchors and the rows of a task."""
        anchors = [row for row in self.anchors if row.task == task]
        return anchors, [row for row in self.rows if row.task == task]


def compared(
    runs: Sequence[ComparedRun], anchors: Sequence[ComparedRun], metrics: Sequence[str],
    by: Sequence[str] | None = None,
) -> Comparison:  # fmt: skip
    """Arrange runs in rows: by all settings but the seed or, with `by`, by these settings alone."""
    keys = differing(runs)
    names = shortest(sorted(keys))
    of_methods = (differing([run for run in runs if run.method == name]) for name in {r.method for r in runs})
    within = {key for differences in of_methods for key in differences}
    minor = {key for key in keys if key not in within and not TASK.fullmatch(key)}
    task_keys = [key for key in keys if TASK.fullmatch(key) and (by is None or key in by)]
    rows = _rows(runs, keys, task_keys, names, by)
    shown = sorted(keys, key=lambda key: (key in minor, not TASK.fullmatch(key), key))
    seedless = sum(run.seed is None for run in runs)
    by_name = {key: names[key] for key in shown}
    return Comparison(rows, _anchor_rows(anchors, rows), by_name, minor, metrics, seedless)


def _rows(
    runs: Sequence[ComparedRun], keys: Sequence[str], task_keys: Sequence[str], names: Mapping[str, str],
    by: Sequence[str] | None,
) -> list[Row]:  # fmt: skip
    split = list(keys) if by is None else [key for key in by if key != "method"]
    by_method = by is None or "method" in by
    groups = grouped(runs, split, by_method=by_method)
    firsts = [members[0] for members in groups]
    tasks = _tasks(firsts, task_keys, names)
    labelled: dict[int, Sequence[str]] = {}  # by the first run: the settings in its label
    for alike in grouped(firsts, task_keys, by_method=by_method):
        labelled |= dict.fromkeys(map(id, alike), _in_label(alike, split, task_keys))
    rows = []
    for members in groups:
        first = members[0]
        method = first.method if by_method else ""
        text = f"{method} {label(first, labelled[id(first)], names)}".strip() or "all runs"
        varied = {key: first.value(key) for key in split}
        rows.append(Row("run", method, text, tasks[mark(first, task_keys)], varied, members))
    return _in_order(rows)


def _in_label(runs: Sequence[ComparedRun], split: Sequence[str], task_keys: Sequence[str]) -> list[str]:
    """The settings that tell the rows of a method and a task from each other."""
    differ = {*differing(runs), *(key for key in split if key == "seed")} - set(task_keys)
    return distinguishing([key for key in split if key in differ], runs)


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by task, method and settings; repeated labels with a number."""
    rows = sorted(rows, key=lambda row: (row.task, row.method, [sortable(v) for v in row.varied.values()]))
    labels = [text.split("\n")[1] for text in numbered([f"{row.task}\n{row.label}" for row in rows])]
    return [replace(row, label=text) for row, text in zip(rows, labels, strict=True)]


def _tasks(runs: Sequence[ComparedRun], keys: Sequence[str], names: Mapping[str, str]) -> dict[Mark, str]:
    """A label for each task."""
    firsts = {mark(run, keys): run for run in runs}
    chosen = distinguishing(keys, list(firsts.values()))
    return dict(zip(firsts, numbered([label(run, chosen, names) for run in firsts.values()]), strict=True))


def _anchor_rows(anchors: Sequence[ComparedRun], rows: Sequence[Row]) -> list[Row]:
    """Target and retain model of each task, judged against each other, which their own files do not know.

    An anchor belongs to the tasks whose runs were compared with it or, if there is none, to those with the
    same settings. If none fits any task, those that an option named belong to every task.
    """
    tasks = {row.task: [run for each in rows if each.task == row.task for run in each.runs] for row in rows}
    keys = [
        key
        for key in differing([*anchors, *(r for runs in tasks.values() for r in runs)])
        if TASK.fullmatch(key)
    ]
    anchor_rows = []
    for kind in ANCHORS:
        some = [run for run in anchors if run.kind == kind]
        fits = {task: _fitting(some, runs, keys) for task, runs in tasks.items()}
        if not any(fits.values()):
            fits = {task: [run for run in some if run.named] for task in tasks}
        anchor_rows += [Row(kind, "", kind, task, {}, members) for task, members in fits.items() if members]
    return [_judged(row, anchor_rows) for row in anchor_rows]


def _fitting(
    anchors: Sequence[ComparedRun], runs: Sequence[ComparedRun], keys: Sequence[str]
) -> list[ComparedRun]:
    used = {path for run in runs for path in run.baselines.values()}
    firsts = {mark(run, keys): run for run in runs}.values()
    return [a for a in anchors if str(a.path) in used] or [
        a
        for a in anchors
        if any(all(a.value(k) == r.value(k) for k in keys if a.knows(k) and r.knows(k)) for r in firsts)
    ]


def _judged(row: Row, rows: Sequence[Row]) -> Row:
    """The row of an anchor with its judgement made against the other anchor of its task."""
    if not any(key.startswith(f"{PREFIX}/") for run in row.runs for key in run.results):
        return row
    runs = []
    for run in row.runs:
        others: dict[str, Results] = {
            other.kind: next((each for each in other.runs if each.seed == run.seed), other.runs[0]).results
            for other in rows
            if other.task == row.task
        }
        judged = with_judgement({**others, row.kind: run.results}, config=judgement_of(run.settings))
        runs.append(replace(run, results=judged[row.kind]))
    return replace(row, runs=runs)


def sortable(value: Any) -> tuple[int, float, str]:
    """Return a key to sort settings by: null first, then numbers, then text."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return (0 if value is None else 1 if known else 2, float(value) if known else 0.0, str(value))
