"""Charts of single forget tokens under the G-effect: implicit weights, effects and likelihoods.

After arXiv 2502.19301, figure 5, and the analysis of weights in arXiv 2505.11953, section 4.
"""

from __future__ import annotations

import html
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from launch.report.axes import Signed, signed
from launch.report.geffect.chart_parts import joined, with_slider
from launch.report.geffect.files import Tables, thinned
from launch.report.results_table import format_value
from launch.report.traces import Figure, number

MAX_POINTS = 3000  # of a chart, all steps together
MAX_STEPS = 12  # steps of a chart of points
BINS = 24
_WORDS = {
    "weight": "weight",
    "p": "likelihood p",
    "unlearn": "⟨∇ℓ, ∇R forget⟩",
    "retain": "⟨∇ℓ, ∇R retain⟩",
    "objective": "⟨∇ℓ, ∇L⟩",
}

Cells = Mapping[str, Any]


def sampled(rows: Sequence[Cells], limit: int) -> list[Cells]:
    """Return at most so many rows, the same at every step: the smallest hashes of id and position."""
    if len(rows) <= limit:
        return list(rows)

    def place(number: int) -> tuple[int, int]:
        row = rows[number]
        return zlib.crc32(f"{row.get('set')}/{row['id']}/{row['position']}".encode()), number

    return [rows[i] for i in sorted(sorted(range(len(rows)), key=place)[:limit])]


def token_charts(tokens: Tables) -> list[Figure]:
    """Return charts of the forget tokens: effects and likelihood by weight, and the weights over the steps.

    For an objective without weights by token: its effects by likelihood.
    """
    steps = thinned(list(tokens), MAX_STEPS)
    limit = MAX_POINTS // max(1, len(steps))
    by_step = {step: sampled(_forget(tokens[step]), limit) for step in steps}
    weighted = any(number(row.get("weight")) is not None for rows in by_step.values() for row in rows)
    across = "weight" if weighted else "p"
    positive = "positive: making this token less likely raises that risk"
    figures = [
        _scatter(by_step, across, "unlearn", "Forget tokens: effect on the forget risk", positive),
        _scatter(by_step, across, "retain", "Forget tokens: effect on the retain risk", positive),
    ]
    if weighted:
        implicit = "implicit weight of each forget token in the objective"
        figures.append(_scatter(by_step, "p", "weight", "Weight against likelihood", implicit))
        figures.append(distribution(tokens, "Weights over the steps"))
    else:
        negative = "negative: a step makes this token less likely"
        figures.append(
            _scatter(by_step, "p", "objective", "Forget tokens: effect of the objective", negative)
        )
    return [figure for figure in figures if figure.data]


def _forget(table: pa.Table) -> list[Cells]:
    rows = [row for row in table.to_pylist() if row["set"] == "forget" and number(row["logp"]) is not None]
    return [row | {"p": math.exp(min(0.0, row["logp"]))} for row in rows]


def _scatter(by_step: Mapping[int, Sequence[Cells]], x: str, y: str, title: str, hint: str) -> Figure:
    """A cloud of points per step; the axes stay while the slider moves."""
    known = {}
    for step, rows in by_step.items():
        if some := [r for r in rows if number(r.get(x)) is not None and number(r.get(y)) is not None]:
            known[step] = some
    if not known:
        return Figure(title)
    scale = Signed() if y == "weight" else signed(row[y] for rows in known.values() for row in rows)
    figure = Figure(title, joined(hint, scale.note))
    for rows in known.values():
        figure.data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "role": "forget",
                "marker": {"size": 6, "opacity": 0.55},
                "x": [row[x] for row in rows],
                "y": [scale.place(row[y]) for row in rows],
                "customdata": [_hover(row, y) for row in rows],
                "hovertemplate": f"<b>%{{customdata[0]}}</b> %{{customdata[1]}}<br>{_WORDS[x]} %{{x:.4g}}"
                f"<br>{_WORDS[y]} %{{customdata[2]}}<extra></extra>",
            }
        )
    across, up = (room(value for trace in figure.data for value in trace[axis]) for axis in ("x", "y"))
    figure.layout = {
        "xaxis": {"title": {"text": _WORDS[x]}, "range": across},
        "yaxis": {"title": {"text": _WORDS[y]}, "range": up, "zeroline": True} | scale.ticks,
        "hovermode": "closest",
        "showlegend": False,
    }
    return with_slider(figure, [[i] for i in range(len(known))], list(known))


def _hover(row: Cells, y: str) -> list[str]:
    token = html.escape(str(row["text"]).strip() or "␣")
    where = f"token {row['position']} of {html.escape(str(row['id']))}, p {format_value(row['p'])}"
    return [token, where, format_value(row[y])]


def room(values: Iterable[float | None]) -> list[float]:
    """Return a range with a margin around the values."""
    known = [value for value in values if value is not None and math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1e-3
    return [low - margin, high + margin]


def distribution(tokens: Tables, title: str) -> Figure:
    """Return a map of the forget tokens' weights by step, shares by bin, with their mean as a line."""
    weights = {step: pairs(table)[1] for step, table in tokens.items()}
    weights = {step: values for step, values in weights.items() if values.size}
    figure = Figure(title, "share of the forget tokens by weight · line: the mean weight")
    if not weights:
        return figure
    low = min(0.0, *(float(values.min()) for values in weights.values()))
    high = max(float(values.max()) for values in weights.values())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    shares = np.array([np.histogram(values, edges)[0] / values.size for values in weights.values()]).T
    figure.data = [
        {
            "type": "heatmap",
            "scale": "sequential",
            "x": [str(step) for step in weights],
            "y": ((edges[1:] + edges[:-1]) / 2).tolist(),
            # The square root keeps small shares visible; the hover has the share itself.
            "z": np.sqrt(shares).round(4).tolist(),
            "customdata": [[f"{share:.1%}" for share in row] for row in shares.tolist()],
            "hovertemplate": "step %{x}, weight about %{y:.3g}<br>%{customdata} of the tokens<extra></extra>",
            "showscale": False,
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "marker": {"size": 5},
            "role": "forget",
            "x": [str(step) for step in weights],
            "y": [float(values.mean()) for values in weights.values()],
            "hovertemplate": "mean weight at step %{x}: %{y:.4g}<extra></extra>",
        },
    ]
    figure.layout = {
        "xaxis": {"type": "category", "title": {"text": "step"}, "showgrid": False},
        "yaxis": {"title": {"text": "weight"}, "showgrid": False, "range": [edges[0], edges[-1]]},
        "hovermode": "closest",
        "showlegend": False,
    }
    return figure


def pairs(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return likelihood and implicit weight of the forget tokens that have a weight, [N] each."""
    logp, weight = _weighted(table, "logp")
    return np.exp(np.minimum(logp, 0.0)), weight


def rank_correlation(table: pa.Table, column: str) -> float | None:
    """Return Spearman's correlation of a column with the implicit weight over the forget tokens.

    None where one of them is constant, or missing.
    """
    from scipy.stats import spearmanr

    values, weight = _weighted(table, column)
    if len(weight) < 2 or not np.ptp(weight) or not np.ptp(values):
        return None
    return float(spearmanr(weight, values).statistic)


def _weighted(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column and the weight of the forget tokens that have both."""
    if not {"set", column, "weight"} <= set(table.column_names):
        return np.empty(0), np.empty(0)
    values, weight = (np.array(table[name].to_pylist(), dtype=float) for name in (column, "weight"))
    known = np.isfinite(weight) & np.isfinite(values) & (np.array(table["set"].to_pylist()) == "forget")
    return values[known], weight[known]
