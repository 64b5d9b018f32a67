"""Charts of what comes back in a model that was quantised, or trained again on what it forgot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.benchmark import Better
from eval.metric_catalog import direction, in_order, info, split_key
from launch.report.results_table import format_value
from launch.report.traces import Figure, Results, axis, drawable, label, level, line, number, over_steps


def relearned(models: Mapping[str, Results]) -> list[Figure]:
    """Forget metrics while a model is trained on what it forgot: a chart for each, a line for each model.

    Step 0 is the model before; one that was not trained again is a dotted level.
    """
    figures = []
    for key, labels in _changed(models, "relearning").items():
        for end, where in (("", ""), ("/unseen", ", what was not trained on")):
            steps = {int(found[1]): name for name in labels if (found := re.fullmatch(rf"(\d+){end}", name))}
            lines = [_path(key, role, results, steps) for role, results in models.items()]
            drawn = [each for each in lines if each is not None]
            if any("line" not in each for each in drawn):
                axes = over_steps(legend=True) | {"yaxis": axis(key, titled=False)}
                axes["xaxis"] = {"title": {"text": "steps of relearning"}}
                figures.append(Figure(f"Relearning · {_title(key)}{where}", direction(key), drawn, axes))
    return figures


def _path(key: str, role: str, results: Results, steps: Mapping[int, str]) -> dict[str, Any] | None:
    """A model's line from step 0, its level where it was not trained again, None without the metric."""
    later = [{"step": step, key: results.get(f"relearning/{steps[step]}/{key}")} for step in sorted(steps)]
    if any(number(row[key]) is not None for row in later):
        return line([{"step": 0, key: results.get(key)}, *later], key, name=role, role=role)
    if steps and number(results.get(key)) is not None:
        return level(key, role, results, 0, max(steps))
    return None


def quantised(models: Mapping[str, Results]) -> list[Figure]:
    """Forget metrics of a model before and after it was quantised: bars by precision, a colour by model."""
    figures = []
    for key, labels in _changed(models, "quantisation").items():
        bars = []
        for role, results in models.items():
            values = [results.get(key), *(results.get(f"quantisation/{name}/{key}") for name in labels)]
            if any(number(value) is not None for value in values):
                bars.append(_bars(key, role, ["before", *labels], values))
        axes = {"yaxis": axis(key, titled=False), "barmode": "group", "showlegend": True}
        figures.append(Figure(f"Quantisation · {_title(key)}", direction(key), bars, axes))
    return figures


def _changed(models: Mapping[str, Results], kind: str) -> dict[str, list[str]]:
    """Forget metrics that some model has of itself changed, with the labels of the changes."""
    found: dict[str, list[str]] = {}
    for key in in_order(key for results in models.values() for key in results):
        one = info(key)
        declared = one.declared
        forget = declared and declared.better is Better.FORGOTTEN_IF_LOWER and "card" in declared.views
        if one.variant.startswith(f"{kind}/") and forget and not one.is_detail:
            found.setdefault(one.plain, []).append(one.variant.partition("/")[2])
    return {key: found[key] for key in in_order(found)}


def _bars(key: str, role: str, names: list[str], values: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": role,
        "role": role,
        "x": names,
        "y": [drawable(key, value) if value is not None else None for value in values],
        "customdata": [format_value(value) for value in values],
        "hovertemplate": "%{customdata}",
    }


def _title(key: str) -> str:
    return f"{split_key(key)[0].upper()} {label(key)}"
