"""What an optimising sweep is given for a run: one number, under which what must hold comes first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eval.metric_catalog import can_be, metrics_of
from unlearn.config import BOUND, GoalConfig, RunConfig
from unlearn.data.sources import available
from unlearn.errors import ConfigError, UserError, did_you_mean

FLOOR = -1e9
"""No feasible value is lower, no infeasible one higher."""

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Bound:
    """At least (or at most) `number`, or that many times what the model `of` (target, retain, or "") has."""

    key: str
    at_least: bool
    number: float
    of: str

    def violation(self, found: Numbers, beside: Mapping[str, Numbers]) -> float:
        """How far it is missed, in units of what is asked for (0 is met; of 0, in plain units)."""
        asked = self.number * (_number(self.key, beside[self.of], self.of) if self.of else 1.0)
        missed = asked - _number(self.key, found, "run")
        return max(0.0, missed if self.at_least else -missed) / (abs(asked) or 1.0)


def bounds(goal: GoalConfig) -> list[Bound]:
    """What must hold; a plain number is the least share of the target's value."""
    made = []
    for key, bound in goal.subject_to.items():
        if isinstance(bound, str):
            match = BOUND.fullmatch(bound.strip())
            assert match is not None  # the schema has looked at it
            made.append(Bound(key, match["sense"] == ">=", float(match["number"]), match["of"] or ""))
        else:
            made.append(Bound(key, True, bound, "target"))
    return made


def goal_value(goal: GoalConfig, found: Numbers, beside: Mapping[str, Numbers]) -> tuple[float, bool]:
    """The value of a run, larger is better, and whether all that must hold does.

    A feasible run has its metric (minus it, to be minimized); an infeasible one lies below all of them, the
    lower the more it misses: the sum over what must hold of the relative shortfall. That order is Deb's
    ("An efficient constraint handling method for genetic algorithms", CMAME 186, 2000), and leads a sampler
    which only compares values, as TPE and CMA-ES do, to what is feasible.

    Args:
        found: the run's results. beside: those of "target" and "retain", where bounds refer to them.

    Raises:
        UserError: a metric is not among the results, or could not be measured.
    """
    missed = sum(bound.violation(found, beside) for bound in bounds(goal))
    if missed > 0:
        return FLOOR * (1 + missed), False
    value = -_number(goal.minimize, found, "run") if goal.minimize else _number(goal.maximize, found, "run")
    return max(value, FLOOR), True


def missed_by(value: float) -> float:
    """By how much an infeasible run of this value misses what must hold."""
    return value / FLOOR - 1


def check_goal(config: RunConfig) -> None:
    """Raises:
    ConfigError: a bound refers to a model that is not evaluated, or no run will have such a metric.
    """
    if problems := _unknown(config):
        raise ConfigError(problems)
    others = {bound.key: bound.of for bound in bounds(config.goal) if bound.of}
    if others and not config.eval.compare:
        problems = [
            f"goal.subject_to.{key} is measured by the {of}'s value, and eval.compare=false leaves that out"
            for key, of in others.items()
        ]
        raise ConfigError(problems)


def _unknown(config: RunConfig) -> list[str]:
    """The metrics that the chosen benchmarks and variants cannot give."""
    has = available(config.dataset)
    given = [key for name in config.eval.benchmarks for key in metrics_of(name, has)]
    own = [*(f"{name}/*" for name in config.eval.variants), "judged/*", "train/*", "run/*"]
    goal = config.goal
    wanted = {f"goal.subject_to.{metric}": metric for metric in goal.subject_to}
    wanted |= {"goal.minimize": goal.minimize} if goal.minimize else {"goal.maximize": goal.maximize}
    return [
        f"{key}: no benchmark of eval gives {metric}{did_you_mean(metric, given)}"
        for key, metric in wanted.items()
        if not can_be(metric, [*given, *own])
    ]


def _number(key: str, found: Numbers, whose: str) -> float:
    if key not in found:
        near = did_you_mean(key, [name for name in found if name.partition("/")[0] == key.partition("/")[0]])
        raise UserError(f"goal: the {whose}'s results have no {key}{near}")
    value = found[key]
    if value is None or not math.isfinite(value):
        raise UserError(f"goal: {key} of the {whose} could not be measured")
    return float(value)
