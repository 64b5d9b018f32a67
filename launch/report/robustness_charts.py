"""Charts of the forget metrics after each variant that attacks the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.benchmark import Better
from eval.judgement.aspects import UNSEEN
from eval.metric_catalog import in_order, info, is_attack
from launch.report.results_table import format_value
from launch.report.traces import Figure, Results, axis, drawable, label, level, line, number, over_steps

Labels = Mapping[str, Sequence[str]]
"""By metric, the labels under which a variant changed the model: numbers of steps, or names."""


def after_attacks(models: Mapping[str, Results]) -> list[Figure]:
    """Return charts of forget metrics by variant: lines over its steps, or bars by its labels."""
    keys = {key for results in models.values() for key in results}
    attacks = {variant for key in keys if (variant := info(key).variant) and is_attack(variant)}
    labels = {kind: _labels(models, kind) for kind in sorted({name.partition("/")[0] for name in attacks})}
    stepwise = {
        kind: all(_step(name) for names in of.values() for name in names) for kind, of in labels.items()
    }
    lines = [figure for kind in labels if stepwise[kind] for figure in _lines(models, kind, labels[kind])]
    bars = [figure for kind in labels if not stepwise[kind] for figure in _bars(models, kind, labels[kind])]
    return lines + bars


def _lines(models: Mapping[str, Results], kind: str, labels: Labels) -> list[Figure]:
    """Return charts per metric and curve: a line per model from step 0, which is the model before."""
    figures = []
    for key, names in labels.items():
        curves = _curves(kind, names)
        for (curve, end), places in curves.items():
            title = f"{_title(kind, key)}{f', {_words(curve)}' if curve else ''}{_WHERE[end]}"
            figures += _over(models, key, places, title, f"steps of {_words(kind)}")
        for end, places in _by_examples(curves).items():
            title = f"{_title(kind, key)} by examples{_WHERE[end]}"
            figures += _over(models, key, places, title, f"examples of {_words(kind)}, at the last step")
    return figures


Curves = dict[tuple[str, str], dict[int, str]]
"""By a curve's name ("" for the only one) and the mark of its examples, the variant at each step."""
_WHERE = {"": "", UNSEEN: ", what was not trained on"}


def _curves(kind: str, names: Sequence[str]) -> Curves:
    curves: Curves = {}
    for name in names:
        if (step := _step(name)) is not None:
            curves.setdefault((step[1] or "", step[3]), {})[int(step[2])] = f"{kind}/{name}"
    return curves


def _by_examples(curves: Curves) -> dict[str, dict[int, str]]:
    """Return, by the mark of the examples, the variant at the last step of each number of examples."""
    by_mark: dict[str, dict[int, str]] = {}
    for (curve, end), places in curves.items():
        if (count := re.fullmatch(r"(\d+)_examples", curve)) is not None:
            by_mark.setdefault(end, {})[int(count[1])] = places[max(places)]
    return {end: places for end, places in by_mark.items() if len(places) > 1}


def _over(
    models: Mapping[str, Results], key: str, places: Mapping[int, str], title: str, across: str
) -> list[Figure]:
    """Return a chart of a metric over numbers with their variants; none if no model was changed."""
    lines = [_path(key, role, results, places) for role, results in models.items()]
    drawn = [each for each in lines if each is not None]
    if not any("line" not in each for each in drawn):
        return []
    axes = over_steps(legend=True) | {"yaxis": axis(key, titled=False), "xaxis": {"title": {"text": across}}}
    return [Figure(title, info(key).direction, drawn, axes)]


def _step(name: str) -> re.Match[str] | None:
    """Match a label that is a number of steps: perhaps a curve's name before it, and after it the mark of
    examples that were not trained on.
    """
    return re.fullmatch(rf"(?:(.+)/)?(\d+)((?:{UNSEEN})?)", name)


def _path(key: str, role: str, results: Results, steps: Mapping[int, str]) -> dict[str, Any] | None:
    """Return a model's line from step 0; its level if it has no later steps, None without the metric."""
    later = [{"step": step, key: results.get(f"{steps[step]}/{key}")} for step in sorted(steps)]
    if any(number(row[key]) is not None for row in later):
        return line([{"step": 0, key: results.get(key)}, *later], key, name=role, role=role)
    if steps and number(results.get(key)) is not None:
        return level(key, role, results, 0, max(steps))
    return None


def _bars(models: Mapping[str, Results], kind: str, labels: Labels) -> list[Figure]:
    """Return a chart per metric: bars before the attack and by label, a colour per model."""
    figures = []
    for key, names in labels.items():
        bars = []
        for role, results in models.items():
            values = [results.get(key), *(results.get(f"{kind}/{name}/{key}") for name in names)]
            if any(number(value) is not None for value in values):
                bars.append(_bar(key, role, ["before", *names], values))
        axes = {"yaxis": axis(key, titled=False), "barmode": "group", "showlegend": True}
        figures.append(Figure(_title(kind, key), info(key).direction, bars, axes))
    return figures


def _labels(models: Mapping[str, Results], kind: str) -> dict[str, list[str]]:
    """Return the forget metrics after a variant, each with the labels of the changed models."""
    labels: dict[str, list[str]] = {}
    for key in in_order(key for results in models.values() for key in results):
        one = info(key)
        declared = one.declared
        forget = declared and declared.better is Better.FORGOTTEN_IF_LOWER and "card" in declared.views
        if one.variant.startswith(f"{kind}/") and forget and not one.is_detail:
            labels.setdefault(one.plain, []).append(one.variant.partition("/")[2])
    return {key: labels[key] for key in in_order(labels)}


def _bar(key: str, role: str, names: list[str], values: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": role,
        "role": role,
        "x": names,
        "y": [drawable(key, value) if value is not None else None for value in values],
        "customdata": [format_value(value) for value in values],
        "hovertemplate": "%{customdata}",
    }


def _title(kind: str, key: str) -> str:
    return f"{_words(kind).capitalize()} · {info(key).benchmark.upper()} {label(key)}"


def _words(name: str) -> str:
    return name.replace("_", " ")
