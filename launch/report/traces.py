"""A chart of a report as plain data for plotly.js, and the traces that it is made of.

A trace names its `role` instead of a colour. The page turns it into one, for its light and its dark theme.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.metric_catalog import info
from launch.report.results_table import format_value
from launch.report.statistics import is_logarithmic

Row = Mapping[str, Any]
Results = Mapping[str, float | None]

MAX_POINTS = 1500  # of a line; a longer one is thinned evenly
SMALLEST_P = 1e-40  # where a p-value of 0 is drawn on the logarithmic axis; the hover has the value itself
_WORDS = {
    "lr": "learning rate",
    "tokens_per_s": "tokens per second",
    "memory_gib": "memory (GiB)",
    "grad_norm": "gradient norm",
}


@dataclass
class Figure:
    """A chart: title, a line of explanation, plotly's traces and layout."""

    title: str
    hint: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)


def label(key: str) -> str:
    """Write a key in words: `tofu/forget/rougeL_recall` as "forget ROUGE-L recall"."""
    one = info(key)
    words = re.sub(r"rouge([L\d])", r"ROUGE-\1", one.metric).replace("_", " ").replace(" f1", " F1")
    text = _WORDS.get(one.metric, words)
    return f"{one.group.replace('_', ' ')} {text}".strip()


def line(history: Sequence[Row], key: str, *, name: str, role: str) -> dict[str, Any]:
    """Return the trace of a key over the steps."""
    rows = [row for row in history if number(row.get(key)) is not None]
    if len(rows) > MAX_POINTS:
        rows = [rows[round(i * (len(rows) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]
    return {
        "type": "scatter",
        "mode": "lines" if len(rows) > 30 else "lines+markers",
        "marker": {"size": 5},
        "name": name,
        "role": role,
        "x": [row["step"] for row in rows],
        "y": [drawable(key, row[key]) for row in rows],
        "customdata": [format_value(row[key]) for row in rows],
        "hovertemplate": "%{customdata}",
    }


def level(key: str, name: str, results: Results, first: int, last: int) -> dict[str, Any]:
    """Return the trace of one value of a model as a dotted line from the first to the last step."""
    value = results[key]
    group = info(key).group
    return {
        "type": "scatter",
        "mode": "lines",
        "line": {"dash": "dot", "width": 1.5},
        "showlegend": False,
        "name": f"{name} ({group})" if group else name,
        "role": name,
        "x": [first, last],
        "y": [drawable(key, value)] * 2,
        "customdata": [format_value(value)] * 2,
        "hovertemplate": "%{customdata}",
    }


def axis(key: str, *, titled: bool = True) -> dict[str, Any]:
    """Return plotly's axis for a metric, logarithmic for p-values."""
    axis: dict[str, Any] = {"title": {"text": label(key), "standoff": 14}} if titled else {}
    if is_logarithmic(key):
        axis |= {"type": "log", "nticks": 7}
    return axis


def over_steps(*, legend: bool) -> dict[str, Any]:
    """Return the layout of a chart over the steps."""
    return {"xaxis": {"title": {"text": "step"}}, "hovermode": "x unified", "showlegend": legend}


def drawable(key: str, value: Any) -> Any:
    """Return the value on the axis: a p-value of 0 has no logarithm."""
    return max(value, SMALLEST_P) if is_logarithmic(key) else value


def number(value: Any) -> float | None:
    """Return a number as it is, None for anything else."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
