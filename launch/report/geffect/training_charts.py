"""Charts of the G-effect over the steps of a run and over its layers (arXiv 2502.19301, figures 3 and 4).

e = ⟨∇R, ∇L⟩ of a risk R and the objective L: a step changes R by about −η·e.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch.report.axes import Signed, signed
from launch.report.geffect.chart_parts import Line, chart, heatmap, joined, untrusted, with_slider
from launch.report.geffect.files import Tables, thinned
from launch.report.traces import Figure, Row, number
from unlearn.probes.geffect.parameter_groups import GROUPS, KINDS

EFFECTS = {
    "unlearn": ("Unlearning effect", "on the forget risk · negative: a step raises it"),
    "retain": ("Retaining effect", "on the retain risk · negative: a step raises it, which hurts"),
}
HOLLOW = "hollow (in all charts): the first-order prediction failed its check there"
MAX_COLUMNS = 60  # columns of a map
MAX_MAPS = 20  # stops of a slider over maps
_ROLES = {"unlearn": "forget", "retain": "retain"}
_SHADE = "rgba(128,128,128,.16)"


def over_training(rows: Sequence[Row]) -> list[Figure]:
    """Return charts over the steps of what was logged.

    Effects of the whole objective, by group of layers, by kind of module and by term; cosines, risks,
    distance, norm. rows: those of `launch.report.geffect.files.effect_rows`.
    """
    sides = [Line(f"geffect/{n}", EFFECTS[n][0].lower(), role) for n, role in _ROLES.items()]
    cosines = [Line(f"geffect/{n}_cosine", f"objective, {role} risk", role) for n, role in _ROLES.items()]
    cosines.append(Line("geffect/conflict", "forget and retain risk", "c3"))
    risks = [Line(f"geffect/risk_{name}", name, name) for name in ("forget", "retain")]
    norm = [Line("geffect/gradient_norm", "gradient norm", "c0")]
    doubt = HOLLOW if untrusted(rows) else ""
    aim = "wanted: negative on forget, 0 or positive on retain"
    conflict = "cosine of the two risks' gradients · positive: forgetting hurts retaining"
    figures = [
        chart(rows, "Unlearning and retaining effect", joined(aim, doubt), sides),
        chart(rows, "Cosines", "of the gradients of objective and risks", cosines),
        *(figure for name in EFFECTS for figure in _parts(rows, name)),
        chart(rows, "Conflict by group of layers", conflict, _lines("geffect/conflict/{}", GROUPS)),
        chart(rows, "Risks", "nats per answer token", risks),
        _distance(rows),
        chart(rows, "Gradient norm", "of the objective over the sample", norm),
    ]
    return [figure for figure in figures if figure is not None]


def _parts(rows: Sequence[Row], name: str) -> list[Figure | None]:
    title, hint = EFFECTS[name]
    start, end = "geffect/terms/", f"/{name}"
    keys = {key for row in rows for key in row if key.startswith(start) and key.endswith(end)}
    terms = sorted(key.removeprefix(start).removesuffix(end) for key in keys)
    return [
        chart(rows, f"{title} by group of layers", hint, _lines(f"geffect/{name}/{{}}", GROUPS)),
        chart(rows, f"{title} by kind of module", hint, _lines(f"geffect/{name}_by_kind/{{}}", KINDS)),
        chart(rows, f"{title} of each term", hint, _lines(f"{start}{{}}{end}", terms)),
    ]


def _lines(pattern: str, names: Sequence[str]) -> list[Line]:
    return [Line(pattern.format(name), name, f"c{i % 8}") for i, name in enumerate(names)]


def _distance(rows: Sequence[Row]) -> Figure | None:
    """The distance over the steps; a shade reaches halfway to the neighbouring steps."""
    distance = [Line("geffect/distance", "distance", "c4")]
    hint = "norm of the change of the weights over that of the target's"
    figure, failed = chart(rows, "Distance from the target", hint, distance), untrusted(rows)
    if figure is None or not failed:
        return figure
    steps = [row["step"] for row in rows]
    shade = {"type": "rect", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    shade |= {"line": {"width": 0}, "fillcolor": _SHADE}
    figure.layout["shapes"] = [
        shade | {"x0": (before + step) / 2, "x1": (step + after) / 2}
        for before, step, after in zip(steps[:1] + steps, steps, steps[1:] + steps[-1:], strict=False)
        if step in failed
    ]
    figure.hint = joined(hint, "shaded: the first-order prediction failed its check there")
    return figure


# -- layers ------------------------------------------------------------------------------------------------

Cell = Mapping[str, Any]
Roll = Callable[[Sequence[Cell]], float | None]


def layer_maps(layers: Tables) -> list[Figure]:
    """Return maps of layer × step for effects and conflict, then of layer × kind of module by step."""
    parts = {
        step: [row for row in layers[step].to_pylist() if row["term"] == "objective"]
        for step in thinned(list(layers), MAX_COLUMNS)
    }
    positive = "cosine of the two risks' gradients · positive: forgetting hurts retaining"
    measured = any(_known(rows, "forget_norm") for rows in parts.values())
    how = "" if measured else "mean over a layer's tensors"
    figures = [_by_layer(parts, f"{title} by layer", hint, _sum(n)) for n, (title, hint) in EFFECTS.items()]
    figures.append(_by_layer(parts, "Conflict map", joined(positive, how), conflict, largest=1.0))
    figures += [
        _by_kind(parts, f"{title} by layer and kind", hint, _sum(n)) for n, (title, hint) in EFFECTS.items()
    ]
    return [figure for figure in figures if figure.data]


def _known(rows: Sequence[Cell], name: str) -> list[float]:
    return [value for row in rows if (value := number(row.get(name))) is not None]


def _sum(name: str) -> Roll:
    return lambda rows: sum(values) if (values := _known(rows, name)) else None


def conflict(rows: Sequence[Cell]) -> float | None:
    """Return the cosine of the two risks' gradients over these tensors together, None without a value.

    Without the columns of norms it is the mean of the tensors' own cosines.
    """
    cosines = _known(rows, "conflict")
    if not cosines:
        return None
    forget, retain = _known(rows, "forget_norm"), _known(rows, "retain_norm")
    if not forget or not retain:
        return sum(cosines) / len(cosines)
    inner = sum((row["conflict"] or 0.0) * row["forget_norm"] * row["retain_norm"] for row in rows)
    return inner / (math.hypot(*forget) * math.hypot(*retain))


def row_name(row: Cell) -> str:
    """Return the row of a tensor on a map: the number of its layer, or its kind outside of the layers."""
    if row["layer"] is not None:
        return f"layer {row['layer']}"
    if (row["group"], row["kind"]) == ("head", "norm"):
        return "final norm"
    return str(row["kind"]) if row["kind"] in ("embedding", "head") else f"{row['group']} {row['kind']}"


def _order(rows: Sequence[Cell]) -> list[str]:
    """The rows of a map from the input to the output of the model."""

    def place(row: Cell) -> tuple[bool, bool, int, bool]:
        inside = row["layer"] is not None
        return (not inside and row["group"] == "head", inside, row["layer"] or 0, row["kind"] == "head")

    places = {row_name(row): place(row) for row in rows}
    return sorted(places, key=lambda name: places[name])


def _by_layer(
    parts: Mapping[int, list[Cell]], title: str, hint: str, roll: Roll, *, largest: float | None = None
) -> Figure:
    names = _order([row for rows in parts.values() for row in rows])
    cells = [[roll([r for r in rows if row_name(r) == name]) for rows in parts.values()] for name in names]
    scale = Signed(None, largest) if largest else signed(value for row in cells for value in row)
    figure = Figure(title, joined(hint, scale.note), layout=_axes("step"))
    if any(value is not None for row in cells for value in row):
        drawn = heatmap([str(step) for step in parts], names, cells, scale)
        figure.data.append(drawn | {"hovertemplate": "step %{x}, %{y}<br>%{customdata}<extra></extra>"})
    return figure


def _by_kind(parts: Mapping[int, list[Cell]], title: str, hint: str, roll: Roll) -> Figure:
    every = [row for rows in parts.values() for row in rows]
    names = _order(every)
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in every)]

    def cells(rows: Sequence[Cell]) -> list[list[float | None]]:
        return [
            [roll([r for r in rows if row_name(r) == name and r["kind"] == kind]) for kind in kinds]
            for name in names
        ]

    maps = {step: cells(parts[step]) for step in thinned(list(parts), MAX_MAPS)}
    scale = signed(value for values in maps.values() for row in values for value in row)
    figure = Figure(title, joined(hint, scale.note), layout=_axes(""))
    if not any(value is not None for values in maps.values() for row in values for value in row):
        return figure
    for values in maps.values():
        drawn = heatmap(kinds, names, values, scale)
        figure.data.append(drawn | {"hovertemplate": "%{y}, %{x}<br>%{customdata}<extra></extra>"})
    return with_slider(figure, [[i] for i in range(len(maps))], list(maps))


def _axes(across: str) -> dict[str, Any]:
    return {
        "xaxis": {"type": "category", "title": {"text": across}, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "hovermode": "closest",
    }
