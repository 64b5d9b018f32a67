"""Charts of single examples under the G-effect: the check of its prediction, and pairs of examples."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.report.axes import Signed, signed
from launch.report.geffect.chart_parts import Line, chart, heatmap, joined, with_slider
from launch.report.geffect.files import Tables, thinned
from launch.report.geffect.token_charts import MAX_POINTS, MAX_STEPS, Cells, room
from launch.report.results_table import format_value
from launch.report.traces import Figure, Row, number
from unlearn.errors import shortened

MAX_PAIRS = 40  # rows and columns of the grid
# Column of the tables and the history → words, and colours for the two sets.
_CHANGES = {
    "predicted": ("predicted", "c1", "c0"),
    "true": ("true", "c5", "c4"),
    "second_order": ("second order", "c6", "c3"),
}

Questions = Mapping[tuple[str, str], str]
"""Questions by set and id."""


def check_charts(rows: Sequence[Row], examples: Tables) -> list[Figure]:
    """Return charts of the predicted against the true change of risk after a small step.

    By example, on average over the steps, and their agreement.
    """
    means = [
        Line(f"geffect/check/{name}_{end}", f"{name} {word}", colours[place])
        for place, name in enumerate(("forget", "retain"))
        for end, (word, *colours) in _CHANGES.items()
    ]
    shares = [
        Line("geffect/check/correlation", "correlation", "c3"),
        Line("geffect/check/explained", "explained", "c2"),
    ]
    averages = chart(rows, "Mean change of risk", "by the same step, nats per token", means)
    agreeing = chart(rows, "Agreement", "over the examples · 1: the prediction is exact", shares)
    figures = [*_predictions(rows, examples), averages, agreeing]
    return [figure for figure in figures if figure is not None]


def _predictions(rows: Sequence[Row], examples: Tables) -> list[Figure]:
    steps = thinned(list(examples), MAX_STEPS)
    checked = {step: _checked(examples[step].to_pylist()) for step in steps}
    known = {step: thinned(some, MAX_POINTS // len(steps)) for step, some in checked.items() if some}
    if not known:
        return []
    values = [row[name] for some in known.values() for row in some for name in ("predicted", "true")]
    scale = signed(values)
    hint = "by the step θ − η∇L, nats per token of each example · line: a perfect prediction"
    figure = Figure("Predicted and true change of risk", joined(hint, scale.note))
    ends = room(scale.place(value) for value in values)
    diagonal = {"type": "scatter", "mode": "lines", "role": "path", "x": ends, "y": ends}
    bare = {"line": {"width": 1, "dash": "dot"}, "hoverinfo": "skip", "showlegend": False}
    figure.data.append(diagonal | bare)
    groups = []
    for some in known.values():
        groups.append([len(figure.data), len(figure.data) + 1])
        figure.data += [_change(some, name, scale) for name in ("forget", "retain")]
    axis = {"range": ends, "zeroline": True} | scale.ticks
    figure.layout = {
        "xaxis": axis | {"title": {"text": "predicted"}},
        "yaxis": axis | {"title": {"text": "true"}},
        "hovermode": "closest",
        "showlegend": True,
    }
    by_step = {row["step"]: row for row in rows}
    notes = [agreement(by_step.get(step, {})) for step in known]
    return [with_slider(figure, groups, list(known), notes, always=[0])]


def _checked(rows: Sequence[Cells]) -> list[Cells]:
    return [r for r in rows if all(number(r.get(name)) is not None for name in ("predicted", "true"))]


def _change(points: Sequence[Cells], name: str, scale: Signed) -> dict[str, Any]:
    mine = [row for row in points if row["set"] == name]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "role": name,
        "marker": {"size": 8, "opacity": 0.75},
        "x": [scale.place(row["predicted"]) for row in mine],
        "y": [scale.place(row["true"]) for row in mine],
        "customdata": [
            [
                hover_text(row.get("question") or row["id"]),
                *map(format_value, (row["predicted"], row["true"])),
            ]
            for row in mine
        ],
        "hovertemplate": "%{customdata[0]}<br>predicted %{customdata[1]}"
        "<br>true %{customdata[2]}<extra></extra>",
    }


def agreement(row: Row) -> str:
    """Write correlation and explained share of a step's check in words."""
    values = {word: number(row.get(f"geffect/check/{word}")) for word in ("correlation", "explained")}
    return ", ".join(f"{word} {format_value(value)}" for word, value in values.items() if value is not None)


def grid_charts(grid: Tables, examples: Tables) -> list[Figure]:
    """Return the map of forget × retain examples with the strongest effects at the last step with a grid."""
    for step in reversed(list(grid)):
        rows = [row for row in grid[step].to_pylist() if number(row.get("effect")) is not None]
        if rows:
            return [_grid(step, rows, questions(examples))]
    return []


def _grid(step: int, rows: Sequence[Cells], asked: Questions) -> Figure:
    forget, retain = (_strongest(rows, name) for name in ("forget_id", "retain_id"))
    cells = {(str(row["retain_id"]), str(row["forget_id"])): row["effect"] for row in rows}
    values = [[cells.get((one, other)) for other in forget] for one in retain]
    scale = signed(value for row in values for value in row)
    x = [_titled("forget", key, asked) for key in forget]
    y = [_titled("retain", key, asked) for key in retain]
    hint = "negative: a step on this forget example alone raises the risk of that retain example"
    figure = Figure("Which forgetting hurts which example", joined(f"step {step}", hint, scale.note))
    hover = "forget %{x}<br>retain %{y}<br><b>%{customdata}</b><extra></extra>"
    figure.data.append(heatmap(x, y, values, scale) | {"hovertemplate": hover})
    bare = {"type": "category", "showticklabels": False, "showgrid": False, "ticks": ""}
    figure.layout = {
        "xaxis": bare | {"title": {"text": f"{len(x)} forget examples"}},
        "yaxis": bare | {"title": {"text": f"{len(y)} retain examples"}, "autorange": "reversed"},
        "hovermode": "closest",
    }
    return figure


def _strongest(rows: Sequence[Cells], name: str) -> list[str]:
    """Ids by mean effect, the most negative first; those with the largest mean size, if there are many."""
    effects: dict[str, list[float]] = {}
    for row in rows:
        effects.setdefault(str(row[name]), []).append(row["effect"])
    strongest = sorted(effects, key=lambda key: -float(np.mean(np.abs(effects[key]))))[:MAX_PAIRS]
    return sorted(strongest, key=lambda key: float(np.mean(effects[key])))


def questions(examples: Tables) -> dict[tuple[str, str], str]:
    """Return the question by set and id, of a plain text the text."""
    rows = [row for table in examples.values() for row in table.to_pylist()]
    return {
        (str(r["set"]), str(r["id"])): str(r.get("question") or r.get("answer") or "") for r in rows
    }  # fmt: skip


def _titled(name: str, key: str, asked: Questions) -> str:
    """Return an id with its question; the id distinguishes equal questions."""
    return (
        f"{html.escape(key)}: {hover_text(asked[name, key])}" if asked.get((name, key)) else html.escape(key)
    )


def hover_text(text: Any, limit: int = 80) -> str:
    """Return a text in one line, shortened and escaped for a hover."""
    return html.escape(shortened(" ".join(str(text).split()), limit))
