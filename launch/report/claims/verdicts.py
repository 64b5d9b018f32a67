"""Try each claim on each task of the runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from launch.report.claims.arms import SAME, Candidates, Missing, NotMade, candidates, of_reported
from launch.report.claims.definitions import (
    MIXED,
    TARGET,
    At,
    Claim,
    Claims,
    Comparison,
    Weights,
    arms_of,
)
from launch.report.claims.trial import Difference, Outcome, Verdict, difference, judged
from launch.report.geffect.files import PREFIX
from launch.report.kept import KeptRun
from launch.report.settings import shortest, word
from launch.report.statistics import rank_correlation
from unlearn.terms import WEIGHTINGS

_OF_FORGET = "tofu/forget/"
_OF = " × "  # between the data and the model of a label
LIKELIHOODS = [step / 1000 for step in range(1, 1000)]
"""Of a token, at which weightings are compared."""


@dataclass(frozen=True)
class Task:
    """A dataset with a model, and the runs on it; no other task has its `label`."""

    label: str
    runs: Sequence[KeptRun] = field(repr=False)

    def of(self, role: str) -> list[KeptRun]:
        return [run for run in self.runs if run.role == role]

    def anchor(self, role: str, key: str) -> float:
        """Return the mean of a metric over the targets or the retain models, NaN where there is none."""
        values = [run.number(key) for run in self.of(role)]
        return float(np.mean(values)) if values else math.nan

    def of_seed(self, role: str, key: str, seed: Any) -> float:
        """Return a metric of the target or retain model of a run with this seed, NaN where there is none.

        Where each seed has data of its own, it is the one of these data; else the mean of all.
        """
        own = [run.number(key) for run in self.of(role) if _data(run.seed) == _data(seed)]
        return float(np.mean(own)) if own else self.anchor(role, key)


@dataclass(frozen=True)
class Trial:
    """The outcome of a claim on a task.

    `chosen`: the setting of each arm; `arms`: all of theirs. `kindest`: the verdict with settings chosen by
    the reported items in place of the selection items, which is too kind to all.
    """

    claim: Claim
    task: Task | None
    outcome: Outcome
    chosen: Mapping[str, str] = field(default_factory=dict)
    arms: Mapping[str, Candidates] = field(default_factory=dict, repr=False)
    kindest: Verdict | None = None


def tasks(runs: Sequence[KeptRun]) -> list[Task]:
    """Return the tasks of the runs by model, and then by dataset, split, and what else differs."""
    groups: dict[Any, list[KeptRun]] = {}
    for run in runs:
        if run.role == "run":
            groups.setdefault(run.task, []).append(run)
    firsts = [members[0] for members in groups.values()]
    plain = [_label(run) for run in firsts]
    made = []
    for run, label, (key, members) in zip(firsts, plain, groups.items(), strict=True):
        alike = [dict(other.task) for other, text in zip(firsts, plain, strict=True) if text == label]
        anchors = [other for other in runs if other.role in ("target", "retain model") and other.task == key]
        made.append(Task(f"{label}{_more(dict(run.task), alike)}", [*members, *anchors]))
    return sorted(made, key=lambda task: (task.label.partition(_OF)[2], task.label))


def _data(seed: Any) -> str:
    """Return the seed of the data of a run with this seed, which names it where the two differ."""
    return str(seed).rpartition("data ")[2]


def _label(run: KeptRun) -> str:
    data = [run.settings.get(f"dataset.{key}") for key in ("name", "forget")]
    return f"{' '.join(str(part) for part in data if part)}{_OF}{run.settings.get('model.name', 'model')}"


def _more(own: Mapping[str, str], alike: Sequence[Mapping[str, str]]) -> str:
    """Return the settings that tell a task from others with the same label."""
    keys = sorted({key for other in alike for key in {*other, *own} if other.get(key) != own.get(key)})
    names = shortest(keys)
    return f" ({', '.join(f'{names[key]} {own.get(key, word(None))}' for key in keys)})" if keys else ""


def tried(claims: Claims, every: Sequence[Task]) -> list[Trial]:
    """Return the trial of each claim on each task with runs of both sides of a comparison and its metric.

    Where there is no such task it cannot tell.
    """
    trials: list[Trial] = []
    for claim in claims.claims:
        if claim.weights:
            trials.append(Trial(claim, None, by_definition(claim.weights)))
            continue
        own = [trial for task in every if (trial := _on_task(claim, claims, task)) is not None]
        trials += own or [Trial(claim, None, Outcome("cannot tell", f"no runs; {claim.run} makes them"))]
    return trials


def by_definition(weights: Iterable[Weights]) -> Outcome:
    """Return whether each weighting rises, or falls, with the likelihood of a token: no run is needed."""
    against, named = [], []
    for each in weights:
        correlation = rank_correlation(LIKELIHOODS, of_likelihood(each))
        named.append(f"{each.label} {correlation:+.2f}")
        if not correlation * each.sign > 0:
            against.append(each.name)
    text = f"rank correlation of weight and likelihood: {'; '.join(named)}"
    return Outcome("does not hold" if against else "holds", text)


def of_likelihood(weights: Weights) -> list[float]:
    """Return the weight of a token at each of `LIKELIHOODS`."""
    logp = torch.tensor(LIKELIHOODS, dtype=torch.float64).log()
    weighting = WEIGHTINGS.find(weights.name, f"weighting {weights.name}")
    return weighting(logp, **weights.options).tolist()


def _on_task(claim: Claim, claims: Claims, task: Task) -> Trial | None:
    runs = task.of("run")
    if claim.metric.startswith(PREFIX):  # only of runs that were watched
        runs = [run for run in runs if any(key.startswith(PREFIX) for key in run.results)]
    keys = {claim.metric, *(each.metric for each in claim.comparisons if each.metric)}
    if not any(run.results.get(key) is not None for run in runs for key in keys):
        return None
    arms: dict[str, Candidates] = {}
    missing: dict[str, Missing] = {}
    for name in arms_of(claim):
        try:
            arms[name] = candidates(name, claims.arms[name], runs)
        except Missing as reason:
            missing[name] = reason
    pairs = [
        (comparison, than)
        for comparison in claim.comparisons
        for than in (comparison.than if isinstance(comparison.than, list) else [comparison.than])
    ]
    absent = {name for name, reason in missing.items() if isinstance(reason, NotMade)}
    if all(absent.intersection(_arms(*pair)) for pair in pairs):
        return None

    def outcome(claim: Claim, chosen: dict[str, str]) -> Outcome:
        return judged([_difference(claim, *pair, arms, missing, chosen, task) for pair in pairs])

    chosen: dict[str, str] = {}
    own = outcome(claim, chosen)
    by_reported = claim.model_copy(update={"choose": of_reported(claim.choose)})
    return Trial(claim, task, own, chosen, arms, outcome(by_reported, {}).verdict)


def _arms(comparison: Comparison, than: str | float) -> list[str]:
    sides = [comparison.of, *([than] if isinstance(than, str) else [])]
    return [name for name in sides if name != TARGET]


def _difference(
    claim: Claim, comparison: Comparison, than: str | float, arms: Mapping[str, Candidates],
    missing: Mapping[str, Missing], chosen: dict[str, str], task: Task,
) -> Difference:  # fmt: skip
    metric, label = comparison.metric or claim.metric, _named(claim, comparison, than)
    names = _arms(comparison, than)
    for name in names:
        if name in missing:
            return Difference(label, least=comparison.least, missing=str(missing[name]))
    if unequal := _unequal([arms[name] for name in names]):
        return Difference(label, least=comparison.least, missing=unequal)
    at, right = comparison.than_at or comparison.at, comparison.than_metric or metric
    own, other = arms.get(comparison.of), arms.get(str(than))
    if own is not None and other is not None and at == "spread":  # over the same learning rates
        own, other = own.at_rates_of(other), other.at_rates_of(own)
    try:
        first = None if own is None else _values(claim, own, metric, comparison.at, chosen)
        second = None if other is None else _values(claim, other, right, at, chosen)
    except Missing as reason:
        return Difference(label, least=comparison.least, missing=str(reason))
    measured = [set(side) for side in (first, second) if side is not None]
    seeds = sorted(set.intersection(*measured), key=repr)
    if not isinstance(than, str):
        second = dict.fromkeys(seeds, than)
    first = first or {seed: task.of_seed("target", metric, seed) for seed in seeds}
    second = second or {seed: task.of_seed("target", right, seed) for seed in seeds}
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if comparison.log:
        pairs = [(_log(a), _log(b)) for a, b in pairs]
    means = tuple(float(np.mean(side)) for side in zip(*pairs, strict=True))
    sign = -1.0 if (comparison.better or claim.better) == "lower" else 1.0
    floors = [-math.inf] * len(seeds)
    if sign < 0 and at != "spread" and metric.removeprefix(MIXED).startswith(_OF_FORGET):
        floors = [_floor(task, metric, seed) for seed in seeds]
    each = list(zip(floors, pairs, strict=True))
    values = [sign * (max(a, floor) - max(b, floor)) for floor, (a, b) in each]
    beyond = bool(each) and all(max(pair) <= floor for floor, pair in each)
    return replace(difference(label, values, comparison.least), means=means, beyond=beyond)


def _floor(task: Task, metric: str, seed: Any) -> float:
    """Return what a model that never saw the forget set leaves of it, −∞ where there is none."""
    floor = task.of_seed("retain model", metric.removeprefix(MIXED), seed)
    return floor if math.isfinite(floor) else -math.inf


def _values(claim: Claim, arm: Candidates, metric: str, at: At, chosen: dict[str, str]) -> dict[Any, float]:
    if at == "spread":
        values = arm.spread(metric)
        chosen.setdefault(arm.name, f"all {len(arm.complete)} settings")
    else:
        setting = arm.chosen(claim.choose, claim.choose_better, at)
        chosen.setdefault(arm.name if at == "best" else f"{arm.name}, worst", setting.label)
        values = {seed: run.number(metric) for seed, run in setting.runs.items()}
    if values and all(map(math.isnan, values.values())):
        raise Missing(f"{metric} was not measured in the runs of {arm.name}")
    return values


def _named(claim: Claim, comparison: Comparison, than: str | float) -> str:
    own, other = comparison.of, f"{than:g}" if isinstance(than, float) else than
    if comparison.log:
        other += ", log10"
    if comparison.at == "spread":
        other += ", spread over rates"
    if comparison.than_metric is not None:
        ends = [
            (key or "").rpartition("/")[2]
            for key in (comparison.metric or claim.metric, comparison.than_metric)
        ]
        return f"{own}: {ends[0]} against {ends[1]}"
    if own == other:
        return f"{own}: {comparison.at} against {comparison.than_at}"
    end = f", {comparison.metric.split('/', 1)[1]}" if comparison.metric is not None else ""
    return f"{own} against {other}{end}"


def _unequal(arms: Sequence[Candidates]) -> str:
    first, last = arms[0].common, arms[-1].common
    differ = [f"{key} {a} against {b}" for key, a, b in zip(SAME, first, last, strict=True) if a != b]
    return f"no fair comparison: {', '.join(differ)}" if differ else ""


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan
