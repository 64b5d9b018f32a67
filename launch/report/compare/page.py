"""compare.html: one page to explore a comparison, with curves and generations of its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

from eval.metric_catalog import info, trade_off_pairs
from launch.report.compare import tables
from launch.report.compare.discover import Discovered
from launch.report.compare.page_data import curves, generations
from launch.report.compare.rows import Comparison, Row, sortable
from launch.report.compare.runs import ComparedRun
from launch.report.discover import LeftOut, left_out_lines
from launch.report.documentation import about, link
from launch.report.labels import short
from launch.report.render import render
from launch.report.results_table import arrow
from launch.report.settings import word
from launch.report.statistics import is_logarithmic
from launch.report.traces import Figure, label

_DIGITS = 10  # significant digits in the page, so that its means are those of the tables
_MAX_CHARTS = 6  # by set, of a benchmark
NO_VALUE = "x"
"""In the page, a metric that could not be measured; null stands for one that was not requested."""


def page(comparison: Comparison, every: Sequence[str], discovered: Discovered) -> str:
    """Return the page.

    every: the metrics it can show, in reading order.
    """
    data, problems = page_data(comparison, every)
    left_out = [*discovered.left_out, *problems]
    charts = [Figure(chart["title"], chart["hint"]) for chart in data["sets"]]
    slots = {"tradeoff": [Figure("")], "sets": charts, "curves": [Figure("")] * 2 if data["curves"] else []}
    shared = _shared([run for row in comparison.rows for run in row.runs], comparison.keys)
    values = {
        "data": data,
        "runs": sum(len(row.runs) for row in comparison.rows),
        "rows": len(comparison.rows),
        "note": tables.note(comparison),
        "left_out": left_out_lines(left_out),
        "shared": shared,
    }
    return render("compare.html.j2", values, slots, clean=True)


def page_data(comparison: Comparison, every: Sequence[str]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the data of the page's script, and what could not be read for it."""
    rows = [*comparison.rows, *comparison.anchors]
    members = [(place, run) for place, row in enumerate(rows) for run in row.runs]
    keys = _keys(comparison)
    lines, problems = curves([run for _, run in members])
    answers, more = generations([run for _, run in members])
    data: dict[str, Any] = {
        "metrics": [_metric(key) for key in every],
        "columns": [every.index(key) for key in comparison.metrics],
        "pair": _pair(every, [run for row in comparison.rows for run in row.runs]),
        "sets": _sets(every),
        "keys": [key | {"values": [short(v) for v in key["values"]]} for key in keys],
        "rows": [{"label": row.label, "task": row.task, "kind": row.kind} for row in rows],
        "runs": [_run(place, run, rows[place], keys, every) for place, run in members],
        "t": _quantiles(max(len(row.runs) for row in rows)),
        "curves": lines,
        "words": answers,
    }
    return data, [*problems, *more]


def _metric(key: str) -> dict[str, Any]:
    one = info(key)
    name = f"{label(key)} · {one.variant}" if one.variant else label(key)
    bench = one.benchmark if "/" in one.plain else ""
    return {
        "key": key,
        "name": name,
        "bench": one.variant.split("/")[0] if one.variant else bench,
        "way": one.direction,
        "arrow": arrow(key),
        "retain": "retain model" in one.direction,
        "log": is_logarithmic(key),
    }


def _pair(every: Sequence[str], runs: Sequence[ComparedRun]) -> list[int]:
    """The metrics that the trade-off chart shows first: the first pair that the most runs have."""

    def have(pair: tuple[str, str]) -> int:
        return sum(all(run.results.get(key) is not None for key in pair) for run in runs)

    known = trade_off_pairs(every)
    if not known:
        known = [(every[-1], every[0])] if len(every) > 1 else [(every[0], every[0])]
    best = max(known, key=have)
    return [every.index(best[0]), every.index(best[1])]


def _sets(every: Sequence[str]) -> list[dict[str, Any]]:
    """Charts of the metrics that were measured on several sets."""
    charts: dict[tuple[str, str], list[str]] = {}
    for key in every:
        one = info(key)
        if one.group and not one.variant and (one.declared is None or one.direction):
            charts.setdefault((one.benchmark, one.metric), []).append(key)
    several = {place: keys for place, keys in charts.items() if len(keys) > 1}
    benches = dict.fromkeys(bench for bench, _ in several)
    drawn = [place for bench in benches for place in [p for p in several if p[0] == bench][:_MAX_CHARTS]]
    return [
        {
            "title": (f"{bench.upper()} · " if len(benches) > 1 else "") + label(metric),
            "hint": _ways(keys),
            "metrics": [every.index(key) for key in keys],
            "names": [info(key).group.replace("_", " ") for key in keys],
        }
        for (bench, metric), keys in ((place, several[place]) for place in drawn)
    ]


def _ways(keys: Sequence[str]) -> str:
    ways: dict[str, list[str]] = {}
    for key in keys:
        ways.setdefault(info(key).direction, []).append(info(key).group.replace("_", " "))
    if len(ways) == 1:
        return next(iter(ways))
    return " · ".join(f"{', '.join(names)}: {way}" for way, names in ways.items())


def _keys(comparison: Comparison) -> list[dict[str, Any]]:
    """The settings to filter by with their values in order; also method and seed where they differ."""
    runs = [run for row in comparison.rows for run in row.runs]
    major = [(key, name) for key, name in comparison.keys.items() if key not in comparison.minor]
    minor = [(key, name) for key, name in comparison.keys.items() if key in comparison.minor]
    ordered = [("method", "method"), *major, ("seed", "seed"), *minor]
    keys: list[dict[str, Any]] = []
    for key, name in ordered:
        values = {repr(run.value(key)): run.value(key) for run in runs}
        if len(values) > 1:
            keys.append({"key": key, "name": name, "values": sorted(values.values(), key=sortable)})
            setting = "method.name" if key == "method" else key
            keys[-1] |= {"minor": key in comparison.minor, "docs": link(setting), "about": about(setting)}
    return keys


def _run(
    place: int, run: ComparedRun, row: Row, keys: Sequence[Mapping[str, Any]], every: Sequence[str]
) -> dict[str, Any]:
    """A run of the page. `s`: the places of its settings' values, −1 where a filter does not apply to it."""
    settings = []
    for key in keys:
        values = list(map(repr, key["values"]))
        mine = repr(run.value(key["key"]))
        applies = row.kind == "run" or key["key"] in run.settings
        settings.append(values.index(mine) if applies and mine in values else -1)
    return {"name": run.name, "row": place, "s": settings, "v": [_number(run, key) for key in every]}


def _number(run: ComparedRun, key: str) -> float | str | None:
    if key not in run.results:
        return None
    value = run.results[key]
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return rounded(value)


def rounded(value: float) -> float:
    """Round a number to the digits that the page keeps."""
    return float(f"{value:.{_DIGITS}g}")


def _quantiles(limit: int) -> list[float | None]:
    """Student's t for a 95 % interval of 0, 1, 2 … values."""
    return [None, None, *(rounded(float(stdtrit(n - 1, 0.975))) for n in range(2, limit + 1))]


def _shared(runs: Sequence[ComparedRun], keys: Mapping[str, str]) -> list[tuple[str, str]]:
    """The settings that all runs share."""
    first = runs[0].settings
    return [(key, word(first[key])) for key in sorted(first) if key not in keys]
