"""Charts of a comparison of runs by their G-effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from launch.report.axes import Signed, signed
from launch.report.geffect.chart_parts import edges
from launch.report.geffect.study import Compared
from launch.report.geffect.token_charts import distribution
from launch.report.geffect.training_charts import EFFECTS
from launch.report.results_table import format_value
from launch.report.settings import shortest, word
from launch.report.statistics import Interval
from launch.report.traces import Figure, number, over_steps
from unlearn.probes.geffect.parameter_groups import GROUPS

P_BINS = 20
COLOURS = 8
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
BANDS = 6  # in a chart; more would hide each other
SPREAD = f"bands (of up to {BANDS} settings), bars and hovers: 95 % interval over seeds"


Styles = Mapping[str, tuple[str, str]]
"""Colour and dash by label."""


def styles(groups: Sequence[Compared]) -> Styles:
    """Return a colour per label; with more labels than colours one per method, dashed by setting."""
    methods = {method: i for i, method in enumerate(dict.fromkeys(group.method for group in groups))}
    if len(groups) <= COLOURS or len(methods) == 1:
        return {group.label: _style(i) for i, group in enumerate(groups)}
    seen: dict[str, int] = {}
    by_label = {}
    for group in groups:
        place = seen[group.method] = seen.get(group.method, -1) + 1
        by_label[group.label] = (f"c{methods[group.method] % COLOURS}", DASHES[place % len(DASHES)])
    return by_label


def _style(place: int) -> tuple[str, str]:
    return f"c{place % COLOURS}", DASHES[place // COLOURS % len(DASHES)]


def study_charts(groups: Sequence[Compared]) -> dict[str, list[Figure]]:
    """Return charts by section of the page; sections without data are empty."""
    families = {m: [g for g in groups if g.method == m] for m in dict.fromkeys(g.method for g in groups)}
    several = {m: members for m, members in families.items() if len(members) > 1}
    everywhere = styles(groups)
    effects = [
        *((f"geffect/{n}", *EFFECTS[n]) for n in EFFECTS),
        ("geffect/unlearn_cosine", "Unlearning cosine", "free of scale · negative: forgets"),
        ("geffect/retain_cosine", "Retaining cosine", "free of scale · negative: hurts"),
        ("geffect/risk_forget", "Forget risk", "nats per answer token"),
        ("geffect/risk_retain", "Retain risk", "nats per answer token"),
        ("geffect/conflict", "Conflict", "cosine of the two risks' gradients"),
        ("geffect/distance", "Distance from the target", "share of the norm of its weights"),
    ]
    by_group = [
        (f"geffect/{n}/{group}", f"{EFFECTS[n][0]} · {group}", "") for group in GROUPS for n in EFFECTS
    ]
    sections: dict[str, list[Figure | None]] = {
        "effects": [by_step(groups, everywhere, *each) for each in effects],
        "groups": [by_step(groups, everywhere, *each) for each in by_group],
        "families": [
            by_step(some, styles(some), f"geffect/{n}", f"{title} · {method}", hint, legend=True)
            for method, some in several.items()
            if len(families) > 1
            for n, (title, hint) in EFFECTS.items()
        ],
        "settings": [each for method, some in several.items() for each in by_setting(method, some)],
        "weights": [*likelihood(groups, everywhere), *distributions(groups)],
    }
    return {name: [f for f in figures if f is not None] for name, figures in sections.items()}


def by_step(
    groups: Sequence[Compared], looks: Styles, key: str, title: str, hint: str, *,
    legend: bool = False,
) -> Figure | None:  # fmt: skip
    """Return a line per group with its interval as a band; None if no group has the key."""
    values = {group.label: group.by_step(key) for group in groups}
    values = {label: steps for label, steps in values.items() if steps}
    if not values:
        return None
    scale = signed(value.mean for steps in values.values() for value in steps.values())
    figure = Figure(title, " · ".join(part for part in (hint, scale.note) if part))
    for label, steps in values.items():
        role, dash = looks[label]
        if len(values) <= BANDS and any(not math.isnan(value.half) for value in steps.values()):
            low, high = ([scale.place(_bound(value, sign)) for value in steps.values()] for sign in (-1, 1))
            figure.data += edges(list(steps), low, high, role)
        figure.data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "marker": {"size": 5},
                "line": {"dash": dash},
                "name": label,
                "role": role,
                "x": list(steps),
                "y": [scale.place(value.mean) for value in steps.values()],
                "customdata": [str(value) for value in steps.values()],
                "hovertemplate": "%{customdata}",
            }
        )
    figure.layout = over_steps(legend=legend) | {"yaxis": {"zeroline": True} | scale.ticks}
    return figure


def _bound(value: Interval, sign: int) -> float:
    """An end of an interval; for one seed the value itself."""
    return value.mean + sign * (0.0 if math.isnan(value.half) else value.half)


def by_setting(method: str, members: Sequence[Compared]) -> list[Figure]:
    """Return mean effects against each numeric setting that varies, a line per choice of the others."""
    figures = []
    names = shortest(list(members[0].varied))
    for key, name in names.items():
        values = {number(group.varied.get(key)) for group in members} - {None}
        if len(values) < 2:
            continue
        for way, (title, hint) in EFFECTS.items():
            figure = _against(members, key, name, names, f"geffect/{way}")
            if figure.data:
                figure.title = f"{title} by {name} · {method}"
                figure.hint = " · ".join(part for part in (f"mean over the run, {hint}", figure.hint) if part)
                figures.append(figure)
    return figures


def _against(members: Sequence[Compared], key: str, name: str, names: Mapping[str, str], of: str) -> Figure:
    rest: dict[str, list[Compared]] = {}
    for group in members:
        others = [f"{names[k]}={word(value)}" for k, value in group.varied.items() if k != key]
        if number(group.varied.get(key)) is not None and group.mean(of).n:
            rest.setdefault(", ".join(others), []).append(group)
    scale = signed(group.mean(of).mean for some in rest.values() for group in some)
    figure = Figure("", scale.note)
    for i, (label, some) in enumerate(sorted(rest.items())):
        some = sorted(some, key=lambda group: group.varied[key])
        points = [group.mean(of) for group in some]
        y = [scale.place(point.mean) for point in points]
        role, dash = _style(i)
        figure.data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label or "all",
                "role": role,
                "line": {"dash": dash},
                "marker": {"size": 7},
                "x": [group.varied[key] for group in some],
                "y": y,
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": _reach(points, scale, 1),
                    "arrayminus": _reach(points, scale, -1),
                },
                "customdata": [f"{point}, n = {point.n}" for point in points],
                "hovertemplate": f"{name} %{{x}}: %{{customdata}}",
            }
        )
    figure.layout = {
        "xaxis": {"title": {"text": name}},
        "yaxis": {"zeroline": True} | scale.ticks,
        "hovermode": "closest",
        "showlegend": len(rest) > 1,
    }
    return figure


def _reach(points: Sequence[Interval], scale: Signed, sign: int) -> list[float]:
    """The length of the error bars on the axis."""
    return [abs((scale.place(_bound(p, sign)) or 0.0) - (scale.place(p.mean) or 0.0)) for p in points]


# -- weights (arXiv 2505.11953, section 4) -----------------------------------------------------------------


def likelihood(groups: Sequence[Compared], looks: Styles) -> list[Figure]:
    """Return the mean implicit weight of the forget tokens by likelihood over all steps, a line per group."""
    hint = "mean over the forget tokens in each twentieth of p, all steps · bands: middle 80 % of the tokens"
    figure = Figure("Weight against likelihood", hint)
    cuts = np.linspace(0.0, 1.0, P_BINS + 1)
    for group in groups:
        p, weight = group.weights()
        if not p.size:
            continue
        bins = np.clip(np.digitize(p, cuts) - 1, 0, P_BINS - 1)
        parts = {place: weight[bins == place] for place in sorted(set(bins.tolist()))}
        x = [float(cuts[place] + cuts[place + 1]) / 2 for place in parts]
        low, high = ([float(np.quantile(some, q)) for some in parts.values()] for q in (0.1, 0.9))
        role, dash = looks[group.label]
        figure.data += edges(x, low, high, role)
        means = [float(some.mean()) for some in parts.values()]
        figure.data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "marker": {"size": 5},
                "name": group.label,
                "role": role,
                "line": {"dash": dash},
                "x": x,
                "y": means,
                "customdata": [
                    f"{format_value(mean)} of {some.size} tokens"
                    for mean, some in zip(means, parts.values(), strict=True)
                ],
                "hovertemplate": "%{customdata}",
            }
        )
    figure.layout = {
        "xaxis": {"title": {"text": "likelihood p"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "weight"}, "zeroline": True},
        "hovermode": "x unified",
        "showlegend": False,
    }
    return [figure] if figure.data else []


def distributions(groups: Sequence[Compared]) -> list[Figure]:
    """Return the weights over the steps of each group, of several seeds those of the first run."""
    figures = []
    for group in groups:
        figure = distribution(group.runs[0].tokens, f"Weights over the steps · {group.label}")
        if figure.data:
            figures.append(figure)
    return figures
