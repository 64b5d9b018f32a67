"""Choose the step of a training whose model is kept (`eval.select`): items to select on, and the rules.

The rules, and where they come from:

- `last`: no choice; all steps are measured. GRUN's code scores every checkpoint, on the reported items, and
  has no rule.
- `fixed`: a step that is set in advance, as Unlearn-Smooth reports one epoch for each benchmark.
- `first_below_retain`: the first step that has forgotten as much as the retain model, else the last (MUSE,
  `knowmem/scripts/get_best_forget_quality.py`).
- `best_above_floor`: the most forgetting among the steps that keep the bound on utility.
- `within`: the first step whose utility is within a share of the target's (UNDO: retain loss within 5 %).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmark import Better, Sets
from eval.metric_catalog import info
from unlearn.config import FLOOR, SelectConfig
from unlearn.data.example import Example
from unlearn.errors import UserError
from unlearn.selection import Candidate, Choice

FOLDER = "selection"
"""Folder of `eval` with what a target or a retain model answers to the selection items."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "last": (),
    "fixed": ("step",),
    "first_below_retain": ("metric",),
    "best_above_floor": ("metric", "utility", "floor"),
    "within": ("utility",),
}
"""The keys of `eval.select` that a rule needs."""

_PIECE = re.compile(r"#\d+$")
_UP = (Better.HIGHER, Better.FORGOTTEN_IF_HIGHER)
_DOWN = (Better.LOWER, Better.FORGOTTEN_IF_LOWER, Better.CLOSER_TO_RETAIN)

Numbers = Mapping[str, float]


# -- items -----------------------------------------------------------------------------------------------


def divide(sets: Sets, share: float) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """Divide each set into selection items and reported items, by the ids of its examples alone.

    Of each group of a set the rounded share of its texts is selected on, at least one text of a set; the
    pieces of a text stay together.

    Raises:
        UserError: a set has fewer than two texts.
    """
    parts: tuple[dict[str, list[Example]], dict[str, list[Example]]] = ({}, {})
    for name, examples in sets.items():
        chosen = _chosen(name, examples, share)
        parts[0][name] = [e for e in examples if text_id(e) in chosen]
        parts[1][name] = [e for e in examples if text_id(e) not in chosen]
    return parts


def _chosen(name: str, examples: Sequence[Example], share: float) -> set[str]:
    groups: dict[str | None, set[str]] = {}
    for example in examples:
        groups.setdefault(example.group, set()).add(text_id(example))
    every = set[str]().union(*groups.values())
    if len(every) < 2:
        raise UserError(
            f"eval.select: set {name} has {len(every)} text, too few to divide into selection items and "
            "reported items; raise eval.limit or dataset.limit, or set eval.select.on=reported"
        )
    chosen: set[str] = set()
    for texts in groups.values():
        chosen |= set(_order(texts)[: math.floor(share * len(texts) + 0.5)])
    ordered = _order(every)
    return (chosen | {ordered[0]}) - ({ordered[-1]} if chosen >= every else set())


def text_id(example: Example) -> str:
    """Return the id of the whole text that an example is a piece of."""
    return _PIECE.sub("", example.id)


def _order(ids: set[str]) -> list[str]:
    """Sort ids at random, the same everywhere."""
    return sorted(ids, key=lambda each: (hashlib.sha256(each.encode()).hexdigest(), each))


# -- rules -----------------------------------------------------------------------------------------------


def first_reaching(values: Sequence[float], bound: float) -> int | None:
    """Return the index of the first value that is at least the bound; None if there is none. NaN is not."""
    return next((index for index, value in enumerate(values) if value >= bound), None)


def best_above(forgetting: Sequence[float], utility: Sequence[float], floor: float) -> int | None:
    """Return the index of the most forgetting where utility is at least the floor, the first of equal ones.

    None if no step keeps the floor. NaN is never chosen.
    """
    kept = [i for i, value in enumerate(utility) if value >= floor and not math.isnan(forgetting[i])]
    return max(kept, key=lambda index: (forgetting[index], -index), default=None)


def oriented(value: float, better: Better, retain: float = math.nan) -> float:
    """Return a metric's value so that larger is better, or more forgetting. `retain`: the retain model's."""
    if better in _UP:
        return value
    if better in _DOWN:
        return -value
    return -abs(value - (retain if better is Better.LIKE_RETAIN else 0.0))


@dataclass(frozen=True)
class Criterion:
    """A rule with its numbers (`unlearn.selection.Selector`).

    `bound` is what the rule compares with, as the metric is given; `retain` the retain model's value of a
    metric of forgetting that is to be like it; NaN where the rule has none. `start` names the model that
    `within` compares with.
    """

    select: SelectConfig
    bound: float
    retain: float
    examples: Mapping[str, int]
    start: str = "target"

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in (self.select.metric, self.select.utility) if key is not None)

    @property
    def description(self) -> dict[str, Any]:
        unread = set() if self.select.rule == "within" else {"tolerance"}
        asked = self.select.model_dump(mode="json", exclude_none=True, exclude=unread)
        return {**asked, "start": self.start, "bound": self.bound, "examples": dict(self.examples)}

    def __call__(self, candidates: Sequence[Candidate]) -> Choice:
        """Choose among the steps so far; the last one, not `met`, where none meets the rule."""
        index = self._index(candidates)
        if index is not None:
            return Choice(candidates[index].step, met=True)
        return Choice(candidates[-1].step, met=self.select.rule == "last", moves=True)

    def _index(self, candidates: Sequence[Candidate]) -> int | None:
        select = self.select
        if select.rule == "last":
            return None
        if select.rule == "fixed":
            return next((i for i, each in enumerate(candidates) if each.step == select.step), None)
        if select.rule == "first_below_retain":
            assert select.metric is not None
            return first_reaching(*self._against(select.metric, candidates))
        assert select.utility is not None
        utility, bound = self._against(select.utility, candidates)
        if select.rule == "within":
            return first_reaching(utility, bound)
        assert select.metric is not None
        better = direction(select.metric)
        forgetting = [oriented(each.metrics[select.metric], better, self.retain) for each in candidates]
        return best_above(forgetting, utility, bound)

    def _against(self, key: str, candidates: Sequence[Candidate]) -> tuple[list[float], float]:
        better = direction(key)
        return [oriented(each.metrics[key], better) for each in candidates], oriented(self.bound, better)


def criterion(
    select: SelectConfig, target: Numbers, retain: Numbers, examples: Mapping[str, int],
    *, start: str = "target",
) -> Criterion:  # fmt: skip
    """Return the rule with its numbers.

    target, retain: what those models reached on the same items; only what the rule needs is read. examples:
    how many of each set the rule sees. start: the name of the model in place of the target.

    Raises:
        UserError: a value that the rule compares with could not be measured.
    """
    bound = like = math.nan
    if select.rule == "first_below_retain":
        bound = _value("retain model", select.metric, retain)
    elif select.rule == "best_above_floor":
        bound = _floor(select, target, retain)
        if direction(str(select.metric)) is Better.LIKE_RETAIN:
            like = _value("retain model", select.metric, retain)
    elif select.rule == "within":
        value = _value(start, select.utility, target)
        away = select.tolerance * abs(value)
        bound = value - away if direction(str(select.utility)) in _UP else value + away
    return Criterion(select, bound, like, examples, start)


def _floor(select: SelectConfig, target: Numbers, retain: Numbers) -> float:
    number, of = _parsed(select)
    if not of:
        return number
    return number * (
        _value("target", select.utility, target)
        if of == "target"
        else _value("retain model", select.utility, retain)
    )


def _parsed(select: SelectConfig) -> tuple[float, str]:
    match = FLOOR.fullmatch(str(select.floor).strip())
    assert match is not None  # the schema has checked it
    return float(match["number"]), match["of"] or ""


def _value(whose: str, key: str | None, values: Numbers) -> float:
    value = values.get(str(key), math.nan)
    if not math.isfinite(value):
        raise UserError(
            f"eval.select: {key} of the {whose} could not be measured, and the rule compares with it; choose "
            "another metric or rule"
        )
    return value


def direction(key: str) -> Better:
    """Return which way a metric is better, as its benchmark declares it."""
    declared = info(key).declared
    return Better.NEITHER if declared is None else declared.better


def compares_with(select: SelectConfig) -> set[str]:
    """Return the models whose values the rule needs, of `target` and `retain model`."""
    needed = set()
    if select.rule == "within":
        needed.add("target")
    if select.rule == "first_below_retain":
        needed.add("retain model")
    if select.rule == "best_above_floor":
        if select.floor is not None and (of := _parsed(select)[1]):
            needed.add("target" if of == "target" else "retain model")
        if select.metric is not None and direction(select.metric) is Better.LIKE_RETAIN:
            needed.add("retain model")
    return needed


def chosen_metrics(select: SelectConfig, stored: Mapping[str, Any]) -> dict[str, float]:
    """Return what results.json says of a choice, from selection.json: the chosen step, whether the rule is
    met, and the rule's metrics at that step and at the last one."""
    steps: Mapping[str, Mapping[str, float | None]] = stored["steps"]
    of = {"": steps[str(stored["chosen"])], "last_": steps[list(steps)[-1]]}
    metrics = {"select/step": float(stored["chosen"]), "select/met": float(stored["met"])}
    for name, key in (("value", select.metric), ("utility", select.utility)):
        if key is not None:
            for when, row in of.items():
                metrics[f"select/{when}{name}"] = math.nan if (value := row[key]) is None else value
    return metrics
