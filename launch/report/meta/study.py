"""Each metric of the forget set on trial: its faithfulness and robustness on a pool of models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import Better
from eval.judgement.aspects import PREFIX, UNSEEN
from eval.metric_catalog import in_order, info, numbered, split_variant
from eval.metrics.likelihood import harmonic_mean
from eval.metrics.meta import (
    FORMS,
    Estimate,
    Faithfulness,
    Form,
    faithfulness,
    mean_of,
    quantisation,
    relearning,
    robustness,
)
from launch.report.meta.pool import Pool, Unlearned
from launch.report.run_files import Results

UTILITY = f"{PREFIX}/utility"
RELEARNED, QUANTISED = "relearning", "quantisation"
_UNRELATED = "/unrelated"
_UP = (Better.FORGOTTEN_IF_LOWER, Better.LIKE_RETAIN)


@dataclass(frozen=True)
class Trial:
    """What a metric showed. By form: R, Q and HM(R, Q); `overall` is HM(AUC, HM(R, Q)), NaN without
    either."""

    key: str
    faithful: Faithfulness
    relearned: Mapping[Form, Estimate]
    quantised: Mapping[Form, Estimate]
    robust: Mapping[Form, Estimate]

    def overall(self, form: Form) -> float:
        return harmonic_mean(np.array([self.faithful.auc, self.robust[form].value]))


@dataclass(frozen=True)
class Attacks:
    """The labels of the changed models, as their keys begin; None where none was scored."""

    relearned: str | None
    quantised: str | None


def attacks_of(models: Iterable[Unlearned]) -> Attacks:
    """Return the most steps of relearning on the forget set, most examples first, and of quantisation NF4 or
    else the fewest bits."""
    labels = {split_variant(key)[0] for each in models for key in each.results}
    by_name: dict[str, list[str]] = {}
    for label in sorted((each for each in labels if not each.endswith(UNSEEN)), key=numbered):
        by_name.setdefault(label.partition("/")[0], []).append(label)
    relearned = [label for label in by_name.get(RELEARNED, []) if _UNRELATED not in label]
    coded = [label for label in by_name.get(QUANTISED, []) if label.endswith("nf4")]
    return Attacks(
        max(relearned, key=_relearning, default=None), [*coded, *by_name.get(QUANTISED, []), None][0]
    )  # fmt: skip


def _relearning(label: str) -> tuple[float, float]:
    """Return the steps and the examples of a relearned model, by its label; without a number, all."""
    numbers = {what: float(count) for count, what in re.findall(r"/(\d+)(_examples)?(?=/|$)", label)}
    return numbers.get("", 0.0), numbers.get("_examples", math.inf)


def trials(pool: Pool, attacks: Attacks, least_utility: float) -> list[Trial]:
    """Return the trial of each metric that both pools have, the most trusted first.

    Robustness is of unlearned models with at least this share of the target's utility (where it was judged)
    that the metric's own threshold counts as models without the knowledge, as in UDS.
    """
    useful = [each for each in pool.unlearned if not (_number(each.results, UTILITY) < least_utility)]
    keys = [
        key
        for key in in_order({key for each in pool.known.values() for key in each})
        if _on_trial(key) and any(key in each for each in pool.unknown.values())
    ]
    made = [_trial(key, pool, useful, attacks) for key in keys]
    made = [each for each in made if each.faithful.known and each.faithful.unknown]
    return sorted(made, key=lambda each: -_first(each.overall("symmetric"), each.faithful.auc - 1))


def oriented(key: str, results: Results) -> float:
    """Return a metric so that more is more knowledge: 1 − x, or −x of metrics of another unit."""
    one, value = info(key), _number(results, key)
    declared = one.declared
    if declared is None or declared.better in _UP:
        return value
    return 1 - value if declared.unit == "0 to 1" else -value


def _on_trial(key: str) -> bool:
    """Return whether a metric is of the knowledge to forget, on the model itself."""
    one = info(key)
    plain = not one.variant and not one.is_detail and one.declared is not None
    return plain and one.declared is not None and one.declared.better in (*_UP, Better.FORGOTTEN_IF_HIGHER)


def _trial(key: str, pool: Pool, useful: Sequence[Unlearned], attacks: Attacks) -> Trial:
    known, unknown = (
        np.array([oriented(key, each) for each in models.values()]) for models in (pool.known, pool.unknown)
    )
    faithful = faithfulness(known, unknown)
    passing = [each for each in useful if oriented(key, each.results) < faithful.threshold]
    before = np.array([oriented(key, each.results) for each in passing])
    retain = np.array([oriented(key, each.retain) for each in passing])
    changed = {
        label: [
            np.array([_changed(label, key, results) for results in models])
            for models in ([each.results for each in passing], [each.retain for each in passing])
        ]
        for label in (attacks.relearned, attacks.quantised)
    }
    after, retain_after = changed[attacks.relearned]
    r = {form: relearning(before, after, retain, retain_after, form) for form in FORMS}
    q = {form: quantisation(before, changed[attacks.quantised][0], form) for form in FORMS}
    return Trial(
        key, faithful, {form: mean_of(r[form]) for form in FORMS}, {form: mean_of(q[form]) for form in FORMS},
        {form: robustness(r[form], q[form]) for form in FORMS},
    )  # fmt: skip


def _changed(label: str | None, key: str, results: Results) -> float:
    """Return the metric of a changed model, oriented as that of the unchanged one."""
    if label is None:
        return math.nan
    return oriented(key, {key: results.get(f"{label}/{key}")})


def _number(results: Results, key: str) -> float:
    value = results.get(key)
    return math.nan if value is None else float(value)


def _first(*values: float) -> float:
    return next((value for value in values if not math.isnan(value)), -math.inf)
