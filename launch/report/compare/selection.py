"""Apply the options of the command: choose metrics, settings and runs, order the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from eval.metric_catalog import shown
from launch.report.compare.ranking import distance
from launch.report.compare.rows import Comparison
from launch.report.compare.runs import ComparedRun
from launch.report.settings import word
from unlearn.errors import UserError, did_you_mean

MAX_COLUMNS = 9


def chosen_metrics(every: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return the metrics that keys, ends of keys and patterns name; without any the most important ones.

    Raises:
        UserError: a name that fits no metric.
    """
    if not asked:
        return shown(every, MAX_COLUMNS) or list(every[:MAX_COLUMNS])
    chosen: dict[str, None] = {}
    for name in asked:
        fits = (
            [name] if name in every else [k for k in every if k.endswith(f"/{name}") or fnmatchcase(k, name)]
        )
        if not fits:
            ends = {key.split("/")[-1] for key in every}
            raise UserError(f"no run has a metric {name}{did_you_mean(name, {*every, *ends})}")
        chosen |= dict.fromkeys(fits)
    return list(chosen)


def chosen_keys(runs: Sequence[ComparedRun], asked: Sequence[str] | None) -> list[str] | None:
    """Return the settings that were named, None if none was."""
    return None if not asked else [setting(runs, name) for name in asked]


def setting(runs: Sequence[ComparedRun], name: str) -> str:
    """Return the key of a setting from enough of its end; `method` is the name of the method.

    Raises:
        UserError: no run has it, or the end fits several.
    """
    if name in ("method", "method.name"):
        return "method"
    if name == "seed":
        return name
    keys = {key for run in runs for key in run.settings}
    fits = [name] if name in keys else sorted(key for key in keys if key.endswith(f".{name}"))
    if not fits:
        ends = {key.split(".")[-1] for key in keys} | {"method", "seed"}
        raise UserError(f"no run has a setting {name}{did_you_mean(name, ends if '.' not in name else keys)}")
    if len(fits) > 1:
        raise UserError(f"{name} fits several settings, write more of it: {', '.join(fits)}")
    return fits[0]


def narrowed(runs: Sequence[ComparedRun], where: Sequence[str]) -> list[ComparedRun]:
    """Return the runs that meet all conditions `KEY=VALUE[,VALUE…]`.

    Raises:
        UserError: a condition has no `=`, or leaves no run.
    """
    left = list(runs)
    for condition in where:
        name, equals, text = condition.partition("=")
        if not equals:
            raise UserError(f"--where {condition}: write KEY=VALUE, e.g. --where method=npo")
        key = setting(runs, name)
        values = text.split(",")
        matching = [run for run in left if any(_same(run.value(key), v) for v in [text, *values])]
        if not matching:
            present = sorted({word(run.value(key)) for run in left})
            raise UserError(f"--where {condition} leaves no run; {key} is {', '.join(present[:20])}")
        left = matching
    return left


def _same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return math.isclose(float(text), value, rel_tol=1e-9)
        except ValueError:
            return False
    names = {str(value), "none", "null"} if value is None else {str(value), str(value).lower(), word(value)}
    return text in names


def ordered(comparison: Comparison, key: str | None) -> Comparison:
    """Sort the rows by a metric, the best first, those without it last; ties keep their order."""
    if key is None:
        return comparison
    order = []
    for task in comparison.tasks:
        anchors, rows = comparison.of_task(task)
        far = {id(row): distance(key, row.mean(key).mean, anchors) for row in rows}
        if all(math.isnan(value) for value in far.values()):  # no direction is declared
            far = {id(row): -row.mean(key).mean for row in rows}
        order += sorted(rows, key=lambda row: (math.isnan(far[id(row)]), far[id(row)]))
    return replace(comparison, rows=order)
