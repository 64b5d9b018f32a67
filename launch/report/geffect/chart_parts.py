"""Parts of the G-effect's charts: lines over the steps, maps, sliders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.report.axes import Signed, signed
from launch.report.results_table import format_value
from launch.report.traces import Figure, Row, line, number, over_steps


@dataclass(frozen=True)
class Line:
    """A line of a chart: the key that it draws, its name and its role."""

    key: str
    name: str
    role: str


def chart(rows: Sequence[Row], title: str, hint: str, lines: Sequence[Line]) -> Figure | None:
    """Return a chart with a line per key that has values, None without any.

    Steps that failed the check of the probe have hollow markers.
    """
    lines = [each for each in lines if any(number(row.get(each.key)) is not None for row in rows)]
    if not lines:
        return None
    scale = signed(row.get(each.key) for row in rows for each in lines)
    failed = untrusted(rows)
    figure = Figure(title, joined(hint, scale.note))
    for each in lines:
        drawn = line(rows, each.key, name=each.name, role=each.role)
        drawn["y"] = [scale.place(value) for value in drawn["y"]]
        if failed:
            symbols = ["circle-open" if step in failed else "circle" for step in drawn["x"]]
            drawn |= {"mode": "lines+markers", "marker": {"size": 7, "symbol": symbols}}
        figure.data.append(drawn)
    figure.layout = over_steps(legend=len(lines) > 1) | {"yaxis": {"zeroline": True} | scale.ticks}
    return figure


def untrusted(rows: Sequence[Row]) -> set[int]:
    """Return the steps whose check was made and failed."""
    return {row["step"] for row in rows if row.get("geffect/trusted") == 0}


def heatmap(
    x: list[str], y: list[str], cells: Sequence[Sequence[float | None]], scale: Signed
) -> dict[str, Any]:
    """Return a map with two colours around zero; the hover has the values themselves."""
    return {
        "type": "heatmap",
        "scale": "diverging",
        "x": x,
        "y": y,
        "z": [[scale.place(value) for value in row] for row in cells],
        "zmin": -scale.reach,
        "zmax": scale.reach,
        "customdata": [[format_value(value) for value in row] for row in cells],
        "colorbar": {"thickness": 10, "outlinewidth": 0} | scale.ticks,
        "hoverongaps": False,
    }


def edges(
    x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], role: str
) -> list[dict[str, Any]]:
    """Return a band without line, hover or legend: the upper edge is filled down to the lower one."""
    bare: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "role": role,
        "x": list(x),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [bare | {"y": list(low)}, bare | {"y": list(high), "fill": "tonexty"}]


def with_slider(
    figure: Figure,
    groups: Sequence[Sequence[int]],
    steps: Sequence[int],
    notes: Sequence[str] = (),
    *,
    always: Sequence[int] = (),
) -> Figure:
    """Add a slider over the steps to a figure; it shows the last step first.

    groups: the traces of each step. notes: a line of text in the chart for each step. always: traces that
    every step shows.
    """
    shown = [[i in group or i in always for i in range(len(figure.data))] for group in groups]
    texts = [{"annotations": [_note(text)]} for text in notes] or [{} for _ in groups]
    for i, trace in enumerate(figure.data):
        trace["visible"] = shown[-1][i]
    figure.layout |= texts[-1]
    if len(steps) > 1:
        stops = [
            {"label": str(step), "method": "update", "args": [{"visible": visible}, text]}
            for step, visible, text in zip(steps, shown, texts, strict=True)
        ]
        figure.layout["sliders"] = [
            {"active": len(steps) - 1, "currentvalue": {"prefix": "step "}, "pad": {"t": 34}, "steps": stops}
        ]
    return figure


def _note(text: str) -> dict[str, Any]:
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": 1, "xanchor": "left", "yanchor": "top"}
    return place | {"text": text, "showarrow": False, "align": "left"}


def joined(*parts: str) -> str:
    """Join the parts of a hint that are not empty."""
    return " · ".join(part for part in parts if part)
