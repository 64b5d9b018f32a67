"""Rules by which a metric counts in an aspect of the judgement; `eval.judgement.judge` gives the reasons.

Benchmarks name these rules in their `METRICS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from eval.metrics.mia import ClosenessForm, closeness

AspectName = Literal["forget_efficacy", "utility", "privacy", "robustness"]
PREFIX = "judged"
UNSEEN = "/unseen"
"""The end of a variant's label for the score on examples that it was not trained on."""
ASPECTS: tuple[AspectName, ...] = ("forget_efficacy", "utility", "privacy", "robustness")
CHANCE = 0.25  # accuracy of guesses among four choices


class Values(NamedTuple):
    """One metric of the model, of the target and of the retain model; NaN where unmeasured.

    `form` is the closeness of AUCs that the configuration chooses.
    """

    own: float
    target: float
    retain: float
    form: ClosenessForm = "exponential"


Component: TypeAlias = tuple[str, float]
"""A formula with `{}` for the key, and its value, which is clipped to [0, 1] later."""

Rule: TypeAlias = Callable[[Values], Component]
Attack: TypeAlias = Callable[[Sequence[str]], "Attacked | None"]


class Attacked(NamedTuple):
    """The name of an attack, and keys before and after it, of metrics that are lower if more is forgotten."""

    name: str
    before: list[str]
    after: list[str]


def more_tries(keys: Sequence[str]) -> Attacked | None:
    """Compare the most tries with the fewest among `…_at_<k>`; None if there is one number of tries."""
    ordered = sorted(keys, key=lambda key: int(re.findall(r"\d+", key)[-1]))
    if len(ordered) < 2:
        return None
    most, fewest = (key.rpartition("/")[2] for key in (ordered[-1], ordered[0]))
    bench = ordered[0].partition("/")[0]
    return Attacked(f"{bench}: 1 − {most}, share of 1 − {fewest}", ordered[:1], ordered[-1:])


def one_minus(values: Values) -> Component:
    """1 − x, for metrics from 0 to 1 that are lower if more is forgotten."""
    return "1 − {}", 1 - values.own


def one_minus_percent(values: Values) -> Component:
    """1 − x/100, for metrics in percent."""
    return "1 − {}/100", 1 - values.own / 100


def closeness_to_chance(values: Values) -> Component:
    """1 − |x − ¼|/¾, for accuracies: one below chance distinguishes answers as well as one above."""
    return "1 − |{} − ¼|/¾", 1 - abs(values.own - CHANCE) / (1 - CHANCE)


def of_targets(values: Values) -> Component:
    """The share of the target's value; without a target the value itself."""
    if math.isnan(values.target):
        return "{}", values.own
    return "{} ÷ target's", _ratio(values.own, values.target)


def above_chance_of_targets(values: Values) -> Component:
    """The share of what the target's accuracy has above chance; without a target the accuracy itself."""
    if math.isnan(values.target):
        return "{}", values.own
    return "({} − ¼) ÷ target's", _ratio(values.own - CHANCE, values.target - CHANCE)


def targets_over(values: Values) -> Component:
    """The target's value over the value, for metrics that are better if lower."""
    return "target's ÷ {}", _ratio(values.target, values.own)


def closeness_to_retain(values: Values) -> Component:
    """The closeness of an AUC to the retain model's; without one 1 − 2·|AUC − ½|."""
    if math.isnan(values.retain):
        return "1 − 2·|{} − ½|", 1 - 2 * abs(values.own - 0.5)
    return "closeness of {} to the retain model's", closeness(values.own, values.retain, values.form)


def closeness_to_half(values: Values) -> Component:
    """The closeness to ½, for an attack whose reference is the retain model: its own AUC is ½."""
    return "closeness of {} to ½", closeness(values.own, 0.5, values.form)


def privleak_closeness(values: Values) -> Component:
    """The closeness to 0 of PrivLeak, 100·ΔAUC/(1 − the retain model's AUC), with ½ for that AUC."""
    return "closeness of {} to 0", closeness(0.5 + abs(values.own) / 200, 0.5, values.form)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
