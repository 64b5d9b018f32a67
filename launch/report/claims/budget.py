"""What the runs took, how they are made, and how much repeated runs differ. Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from launch.report import markdown
from launch.report.claims.arms import RATE
from launch.report.claims.definitions import LEFT, Level
from launch.report.claims.verdicts import Task
from launch.report.kept import KeptRun
from launch.report.results_table import format_value
from launch.report.settings import plain

_BUILDS = "build the"
_TWICE = f"""\
The same settings and seed under two names of the method, and the difference in `{LEFT}`.
It is 0 for runs of one commit on one machine. The sweeps of a column may be of several commits and
processors, which round differently from the first step on, in the training of the targets too. A difference
between methods that is no larger than these may be one of sweeps."""


def budget(every: Sequence[Task], runs: Sequence[KeptRun]) -> str:
    """Return a table of runs, minutes and processors: of each task, and of what made targets."""
    rows = []
    for task in every:
        own = task.of("run")
        rows.append((task.label, _counts(own), *_took([*own, *task.of("target"), *task.of("retain model")])))
    built = [run for run in runs if run.role.startswith(_BUILDS)]
    if built:
        rows.append(("targets and retain models", f"{len(built)} trainings", *_took(built)))
    return markdown.table(("", "runs", "minutes", "processor"), rows)


def _counts(runs: Sequence[KeptRun]) -> str:
    seeds = len({repr(run.seed) for run in runs})
    rates = len({repr(run.value(RATE)) for run in runs})
    methods = len({run.method for run in runs})
    return f"{len(runs)}: {methods} methods, {rates} learning rates, {seeds} seeds"


def _took(runs: Iterable[KeptRun]) -> tuple[str, str]:
    counted = list(runs)
    seconds = [run.seconds for run in counted if run.seconds == run.seconds]
    processors = ", ".join(sorted({run.processor for run in counted if run.processor})) or "–"
    return f"{sum(seconds) / 60:.0f}", processors


def made(levels: Sequence[Level], every: Sequence[Task]) -> list[str]:
    """Return how the runs of each task are made, a line for those that are made alike."""
    lines = []
    for level in levels:
        own = [
            task.label
            for task in every
            if all(task.runs[0].value(key) == plain(value) for key, value in level.where.items())
        ]
        if own:
            lines.append(f"- {', '.join(own)}: {level.made}.")
    return ["\n".join(lines)] if lines else []


def repeated(every: Sequence[Task]) -> list[str]:
    """Return a section on runs with equal settings under two names of the method; [] if there are none."""
    rows = []
    for task in every:
        groups: dict[tuple[str, str], list[KeptRun]] = {}
        for run in task.of("run"):
            settings = repr(sorted((key, repr(value)) for key, value in run.settings.items()))
            groups.setdefault((settings, repr(run.seed)), []).append(run)
        differences: dict[str, list[float]] = {}
        for runs in groups.values():
            for first, second in itertools.pairwise(sorted(runs, key=lambda run: run.method)):
                if first.method != second.method:
                    difference = abs(first.number(LEFT) - second.number(LEFT))
                    differences.setdefault(f"`{first.method}`, `{second.method}`", []).append(difference)
        for names, sizes in sorted(differences.items()):
            figures = format_value(float(np.mean(sizes))), format_value(max(sizes))
            rows.append((task.label, names, str(len(sizes)), *figures))
    table = markdown.table(("on", "methods", "pairs", "mean difference", "largest"), rows)
    return ["### Repeated runs", _TWICE, table] if rows else []
