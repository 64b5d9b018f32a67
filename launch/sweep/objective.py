"""The value of a run for an optimising sweep: one number, in which constraints come first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unlearn.config import BOUND, GoalConfig, RunConfig
from unlearn.data.sources import available
from unlearn.errors import ConfigError, UserError, did_you_mean

FLOOR = -1e9
"""The lowest value of a feasible run, above which no infeasible run is."""

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Bound:
    """At least (or at most) `number`, times the value of the model `of` unless that is ""."""

    key: str
    at_least: bool
    number: float
    of: str

    def violation(self, results: Numbers, baselines: Mapping[str, Numbers]) -> float:
        """Return by how much it is missed, relative to the bound unless that is 0; 0 if it is met."""
        bound = self.number * (_number(self.key, baselines[self.of], self.of) if self.of else 1.0)
        missed = bound - _number(self.key, results, "run")
        return max(0.0, missed if self.at_least else -missed) / (abs(bound) or 1.0)


def bounds(goal: GoalConfig) -> list[Bound]:
    """Return the constraints of a goal; a plain number is the least share of the target's value."""
    constraints = []
    for key, bound in goal.subject_to.items():
        if isinstance(bound, str):
            match = BOUND.fullmatch(bound.strip())
            assert match is not None  # the schema has checked it
            constraints.append(Bound(key, match["sense"] == ">=", float(match["number"]), match["of"] or ""))
        else:
            constraints.append(Bound(key, True, bound, "target"))
    return constraints


def goal_value(goal: GoalConfig, results: Numbers, baselines: Mapping[str, Numbers]) -> tuple[float, bool]:
    """Return the value of a run, larger is better, and whether it meets all constraints.

    The value of a feasible run is its metric (minus it, to be minimized). An infeasible run is below all of
    them, lower by the sum of its relative violations. This order is Deb's ("An efficient constraint handling
    method for genetic algorithms", CMAME 186, 2000). It leads samplers that only compare values, such as TPE
    and CMA-ES, to feasible runs.

    Args:
        results: those of the run. baselines: results of "target" and "retain", if constraints refer to them.

    Raises:
        UserError: a metric is not among the results, or could not be measured.
    """
    missed = sum(bound.violation(results, baselines) for bound in bounds(goal))
    if missed > 0:
        return FLOOR * (1 + missed), False
    value = (
        -_number(goal.minimize, results, "run") if goal.minimize else _number(goal.maximize, results, "run")
    )
    return max(value, FLOOR), True


def missed_by(value: float) -> float:
    """Return the sum of the violations of an infeasible run from its value."""
    return value / FLOOR - 1


def check_goal(config: RunConfig) -> None:
    """Check a goal before any run.

    Raises:
        ConfigError: no run will have one of its metrics, or it refers to a model that is not evaluated.
    """
    if problems := _unknown(config):
        raise ConfigError(problems)
    others = {bound.key: bound.of for bound in bounds(config.goal) if bound.of}
    if others and not config.eval.compare:
        problems = [
            f"goal.subject_to.{key} refers to the {of}'s value, which eval.compare=false leaves out"
            for key, of in others.items()
        ]
        raise ConfigError(problems)


def _unknown(config: RunConfig) -> list[str]:
    """Problems with metrics that the chosen benchmarks and variants do not give."""
    from eval.configuration import benchmark_options  # these take half a second to import
    from eval.metric_catalog import can_be, metrics_of

    has = available(config.dataset)
    known = [
        key
        for name in config.eval.benchmarks
        for key in metrics_of(name, has, benchmark_options(config, name))
    ]
    own = [*(f"{name}/*" for name in config.eval.variants), "judged/*", "train/*", "run/*", "select/*"]
    goal = config.goal
    metrics = {f"goal.subject_to.{metric}": metric for metric in goal.subject_to}
    metrics |= {"goal.minimize": goal.minimize} if goal.minimize else {"goal.maximize": goal.maximize}
    return [
        f"{key}: no benchmark of eval, with its options, gives {metric}{did_you_mean(metric, known)}"
        for key, metric in metrics.items()
        if not can_be(metric, [*known, *own])
    ]


def _number(key: str, results: Numbers, whose: str) -> float:
    if key not in results:
        near = did_you_mean(
            key, [name for name in results if name.partition("/")[0] == key.partition("/")[0]]
        )
        raise UserError(f"goal: the {whose}'s results have no {key}{near}")
    value = results[key]
    if value is None or not math.isfinite(value):
        raise UserError(f"goal: {key} of the {whose} could not be measured")
    return float(value)
