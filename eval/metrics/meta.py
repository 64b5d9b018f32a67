"""Metrics of metrics: which of them can be trusted to tell whether a model has the knowledge.

*Faithfulness* is how well a metric separates models that have the knowledge from models that never had it.
*Robustness* is how little it is moved by what should not move it: relearning beyond what the retain model
learns, and quantisation. After OpenUnlearning (arXiv 2506.12618) and UDS (arXiv 2605.24614), whose published
figures are `symmetric`. The `one_sided` form is that of the docstring of the latter's script; which way the
former's paper divides in quantisation was not seen.

All values are oriented: larger is more knowledge. What a form gives at its edges (no change, a denominator of
0) is derived here: 1 for no change, and never outside 0 to 1. NaN means "could not be measured".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from eval.metrics.likelihood import harmonic_mean
from eval.metrics.mia import auc, bootstrap_interval

Form: TypeAlias = Literal["symmetric", "one_sided"]
FORMS: tuple[Form, ...] = ("symmetric", "one_sided")
_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value of `n` models with the ends of its 95 % percentile bootstrap interval; NaN for one model."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Faithfulness:
    """AUC of models with against models without the knowledge; `threshold` separates them best."""

    auc: float
    low: float
    high: float
    known: int
    unknown: int
    threshold: float


def faithfulness(known: np.ndarray, unknown: np.ndarray) -> Faithfulness:
    """Return the AUC of a metric between models with the knowledge [P] and without it [N], with its interval.

    Each pool is resampled separately; of a pool of one there is no interval. NaN values are left out.
    """
    known, unknown = _measured(known), _measured(unknown)
    low, high = math.nan, math.nan
    if min(len(known), len(unknown)) > 1:
        low, high = bootstrap_interval(unknown, known, resamples=_RESAMPLES)
    return Faithfulness(
        auc(unknown, known), low, high, len(known), len(unknown), separating(known, unknown)
    )  # fmt: skip


def separating(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the threshold of the largest mean of both shares: known models at or above it, unknown below.

    Of equal ones the middle one of the lowest gap between values. NaN where a pool is empty.
    """
    if not len(known) or not len(unknown):
        return math.nan
    values = np.unique(np.concatenate([known, unknown]))
    if len(values) == 1:
        return float(values[0])
    thresholds = (values[1:] + values[:-1]) / 2
    shares = [np.mean(known >= t) + np.mean(unknown < t) for t in thresholds]
    return float(thresholds[int(np.argmax(shares))])


def relearning(
    before: np.ndarray, after: np.ndarray, retain_before: np.ndarray, retain_after: np.ndarray,
    form: Form = "symmetric",
) -> np.ndarray:  # fmt: skip
    """Return R of each unlearned model, [M], from its values and its retain model's; 1: both change alike.

    With Δ = after − before, symmetric: 1 − |Δ_unl − Δ_ret| ÷ (|Δ_unl| + |Δ_ret|). One-sided:
    min(Δ_ret/Δ_unl, 1), 1 where the unlearned model gains nothing.
    """
    ours, theirs = after - before, retain_after - retain_before
    if form == "symmetric":
        return _symmetric(ours, theirs)
    gained = ours > 0
    ratio = np.clip(theirs / np.where(gained, ours, 1.0), 0.0, 1.0)
    return np.where(np.isnan(ours) | np.isnan(theirs), np.nan, np.where(gained, ratio, 1.0))


def quantisation(before: np.ndarray, after: np.ndarray, form: Form = "symmetric") -> np.ndarray:
    """Return Q of each unlearned model, [M]; 1: quantisation does not change the metric.

    Symmetric: 1 − |after − before| ÷ (|after| + |before|). One-sided: min(after/before, 1), 1 where there was
    nothing before; NaN of negative values, which have no such ratio.
    """
    if form == "symmetric":
        return _symmetric(after, before)
    known = before > 0
    ratio = np.clip(after / np.where(known, before, 1.0), 0.0, 1.0)
    unknown = np.isnan(before) | np.isnan(after) | (before < 0)
    return np.where(unknown, np.nan, np.where(known, ratio, 1.0))


def mean_of(values: np.ndarray) -> Estimate:
    """Return the mean over models, [M], with its interval; NaN values are left out."""
    values = _measured(values)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    return _estimate(float(values.mean()), _draws(len(values), values).mean(axis=1), len(values))


def robustness(relearned: np.ndarray, quantised: np.ndarray) -> Estimate:
    """Return HM(R, Q) of the means over models, [M] each, with its interval; n: models with both values.

    The value is of all models with either, as in the published figures. The interval resamples the models
    with both, together.
    """
    value = harmonic_mean(np.array([mean_of(relearned).value, mean_of(quantised).value]))
    both = ~(np.isnan(relearned) | np.isnan(quantised))
    count = int(both.sum())
    if not count:
        return Estimate(value, math.nan, math.nan, 0)
    means = [_draws(count, each[both]).mean(axis=1) for each in (relearned, quantised)]
    return _estimate(
        value, np.array([harmonic_mean(np.array(pair)) for pair in zip(*means, strict=True)]), count
    )


def _symmetric(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = np.abs(one) + np.abs(other)
    return np.where(size == 0, 1.0, 1 - np.abs(one - other) / np.where(size == 0, 1.0, size))


def _draws(count: int, values: np.ndarray) -> np.ndarray:
    """Return resamples [resamples, count] of the values; of equal counts the same models are drawn."""
    places = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    return values[places]


def _estimate(value: float, resampled: np.ndarray, n: int) -> Estimate:
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high), n)


def _measured(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
