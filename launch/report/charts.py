"""The charts of a report as plain data for plotly.js; pure functions of history rows and flat results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.metric_catalog import in_order, info, is_benchmark, trade_off_pairs
from launch.report.geffect.files import PREFIX
from launch.report.results_table import format_value
from launch.report.traces import Figure, Results, Row, axis, drawable, label, level, line, number, over_steps

# Not drawn themselves: other quantities are drawn against them.
COUNTERS = {"step", "epoch", "tokens", "examples", "seconds", "time"}


def trade_offs(models: Mapping[str, Results], history: Sequence[Row]) -> list[Figure]:
    """Return charts of forgetting against utility: a point per model, and the path during training.

    models: role (`target`, `retain model`, `unlearned` …) to results.
    """
    rows = [*models.values(), *history]
    pairs = trade_off_pairs({key for row in rows for key in row if number(row[key]) is not None})
    figures = []
    for x, y in pairs:
        if x != pairs[0][0]:
            break
        figure = _trade_off(x, y, models, history)
        if figure.data:
            figures.append(figure)
    return figures


def _trade_off(x: str, y: str, models: Mapping[str, Results], history: Sequence[Row]) -> Figure:
    figure = Figure(
        title=f"{label(y)} against {label(x)}",
        hint=f"{label(x)}: {info(x).direction} · {label(y)}: {info(y).direction}",
        layout={"xaxis": {"title": {"text": label(x)}}, "yaxis": axis(y), "hovermode": "closest"},
    )
    path = [row for row in history if number(row.get(x)) is not None and number(row.get(y)) is not None]
    if path:
        figure.hint += " · larger dots are later"
        figure.data.append(
            _points(x, y, path, [f"step {row['step']}" for row in path])
            | {
                "name": "during training",
                "role": "path",
                "mode": "lines+markers",
                "marker": {"size": [5 + 6 * i / len(path) for i in range(len(path))], "opacity": 1},
            }
        )
    for name, results in models.items():
        if number(results.get(x)) is not None and number(results.get(y)) is not None:
            figure.data.append(
                _points(x, y, [results], [name])
                | {"name": name, "role": name, "mode": "markers", "marker": {"size": 15}}
            )
    return figure


def training_curves(history: Sequence[Row], benchmarks: set[str]) -> list[Figure]:
    """Return a chart of the loss and its parts, then one per prefix of what else was logged.

    What the G-effect probe logged is in its own charts.
    """
    keys = sorted({key for row in history for key in row} - COUNTERS)
    groups: dict[str, list[str]] = {"loss": []}
    for key in keys:
        if not _evaluated(key, benchmarks) and not key.startswith(PREFIX):
            groups.setdefault(key.split("/")[0], []).append(key)
    figures = []
    for group, members in groups.items():
        lines = [line(history, key, name=_member(group, key), role=f"c{i}") for i, key in enumerate(members)]
        drawn = [line for line in lines if line["x"]]
        if drawn:
            figures.append(Figure(label(group), data=drawn, layout=over_steps(legend=len(drawn) > 1)))
    return figures


def dynamics(
    history: Sequence[Row], models: Mapping[str, Results], benchmarks: set[str], *, selected: bool = False
) -> list[Figure]:
    """Return a chart per metric evaluated during training: a line per set, other models as dotted levels.

    selected: with `eval.select` lines are of its selection examples, where levels are of the reported ones.
    """
    keys = in_order(key for row in history for key in row if _evaluated(key, benchmarks))
    charts: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        one = info(key)
        if not one.is_detail and not one.variant:
            charts.setdefault((one.benchmark, one.metric), []).append(key)
    figures = []
    for (bench, metric), members in charts.items():
        lines = [line(history, key, name=_set(key), role=info(key).group or "c0") for key in members]
        steps = [x for line in lines for x in line["x"]]
        if not steps:
            continue
        levels = [
            level(members[0], name, results, min(steps), max(steps))
            for name, results in models.items()
            if name in ("target", "retain model") and number(results.get(members[0])) is not None
        ]
        axes = over_steps(legend=len(lines) > 1) | {"yaxis": axis(members[0], titled=False)}
        figures.append(
            Figure(
                f"{bench.upper()} · {label(metric)}",
                _hint(members, levels, selected=selected),
                [*lines, *levels],
                axes,
            )
        )
    return figures


def _points(x: str, y: str, rows: Sequence[Row], names: list[str]) -> dict[str, Any]:
    shown = [
        [name, format_value(row[x]), format_value(row[y])] for name, row in zip(names, rows, strict=True)
    ]
    return {
        "type": "scatter",
        "x": [row[x] for row in rows],
        "y": [drawable(y, row[y]) for row in rows],
        "customdata": shown,
        "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{label(x)} %{{customdata[1]}}"
        f"<br>{label(y)} %{{customdata[2]}}<extra></extra>",
    }


def _evaluated(key: str, benchmarks: set[str]) -> bool:
    """Return whether a key of the history is a metric: of these benchmarks, or of any that declares it."""
    bench = info(key).benchmark
    return bench in benchmarks or is_benchmark(bench)


def _member(group: str, key: str) -> str:
    if key == group:
        return "total" if group == "loss" else group
    return key.removeprefix(f"{group}/")


def _set(key: str) -> str:
    return (info(key).group or info(key).metric).replace("_", " ")


def _hint(keys: Sequence[str], levels: Sequence[Mapping[str, Any]], *, selected: bool) -> str:
    """Write the directions, by set if they differ, and what the dotted levels are."""
    ways = {info(key).direction: _set(key) for key in reversed(keys)}
    texts = [f"{name}: {way}" if len(ways) > 1 else way for way, name in reversed(ways.items()) if way]
    if levels:
        of = ", of the reported examples" if selected else ""
        texts.append("dotted: " + ", ".join(level["name"] for level in levels) + of)
    if selected:
        texts.append("lines: of the selection examples")
    return " · ".join(texts)
