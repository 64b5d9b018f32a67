"""Membership inference: distinguish the forget set from a holdout set that no model has seen.

An attack gives each example a score like a loss, [E]: the lower, the more likely the model was trained on it.
NaN means "could not be measured": an example without a token.

AUC → 1: forget examples score below holdout ones, so they are remembered; ½: chance; → 0: they score above,
so unlearning is visible. The retain model need not be at ½, since the two sets may differ by themselves:
compare with its AUC (`privleak`, `closeness`).

As in OpenUnlearning, the mean NLL of `loss`, `zlib_entropy` and `reference` includes an answer's end token,
and Min-K and Min-K++ do not: give these `likelihood.without_end` of the records.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from eval.collection.ragged import Ragged
from eval.metrics.likelihood import mean_nll

ClosenessForm: TypeAlias = Literal["exponential", "relative"]
FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1)


def loss(logp: Ragged) -> np.ndarray:
    """Return the mean NLL per token. (Yeom et al., arXiv 1709.01604.)"""
    return mean_nll(logp)


def zlib_entropy(logp: Ragged, texts: Sequence[str]) -> np.ndarray:
    """Return mean NLL ÷ bytes of the zlib-compressed text: a loss relative to the information in the text.

    `texts` are those that `logp` scores. NaN for an empty text.
    (Carlini et al., arXiv 2012.07805, §5.2, with the mean of the released attacks in place of the sum.)
    """
    if len(texts) != len(logp):
        raise ValueError(f"zlib_entropy: {len(texts)} texts for {len(logp)} rows of log-probabilities")
    sizes = [len(zlib.compress(text.encode("utf-8"))) if text else math.nan for text in texts]
    return mean_nll(logp) / np.array(sizes, dtype=np.float64)


def min_k(logp: Ragged, k: float = 0.4) -> np.ndarray:
    """Return −mean of the max(1, ⌊k·n⌋) lowest of n token log-probabilities. (Min-K%, arXiv 2310.16789.)"""
    return -_mean_of_lowest(logp, k)


def min_k_plus_plus(logp: Ragged, mean: Ragged, variance: Ragged, k: float = 0.4) -> np.ndarray:
    """Min-K of z = (log p − μ)/σ; can be negative. (Min-K%++, arXiv 2404.02936.)

    μ and σ² are mean and variance of log p over the vocabulary under the model's own distribution. The
    variance is kept above 1e-6, hence σ above 1e-3: the code of OpenUnlearning calls σ² `sigma`, clamps it
    and then takes the root.
    """
    for name, rows in (("mean", mean), ("variance", variance)):
        if not np.array_equal(rows.offsets, logp.offsets):
            raise ValueError(f"min_k_plus_plus: the rows of {name} are not as long as those of logp")
    values = [rows.values.astype(np.float64) for rows in (logp, mean, variance)]
    z = (values[0] - values[1]) / np.sqrt(np.maximum(values[2], 1e-6))
    return -_mean_of_lowest(Ragged(z, logp.offsets), k)


def reference(nll: np.ndarray, reference_nll: np.ndarray) -> np.ndarray:
    """Return NLL − NLL of another model, to correct for difficulty. (Carlini et al., arXiv 2012.07805.)"""
    return nll - reference_nll


def auc(forget: np.ndarray, holdout: np.ndarray) -> float:
    """Return the probability that a holdout score exceeds a forget score, ties counted ½; 1: remembered.

    This is the ROC AUC of label 0 for forget and 1 for holdout. NaN scores are left out; NaN if a class has
    none.
    """
    ours, theirs = np.sort(_measured(forget)), _measured(holdout)
    if not len(ours) or not len(theirs):
        return math.nan
    below, upto = (np.searchsorted(ours, theirs, side) for side in ("left", "right"))
    return float((below.sum() + upto.sum()) / (2 * len(ours) * len(theirs)))


def tpr_at_fpr(forget: np.ndarray, holdout: np.ndarray, fpr: float) -> float:
    """Return the largest share of forget scores ≤ t, where at most a share `fpr` of holdout scores is.

    The threshold t is free, so this is a step of the ROC curve, without interpolation: with fewer than 1/fpr
    holdout examples none of them may count as a member. NaN as in `auc`.

    Raises:
        ValueError: `fpr` is not between 0 and 1.
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr={fpr}: a false-positive rate is between 0 and 1")
    ours, theirs = _measured(forget), np.sort(_measured(holdout))
    if not len(ours) or not len(theirs):
        return math.nan
    # Divide, do not multiply: 29/100 is the float 0.29, but 0.29·100 is below 29.
    spared = int(np.count_nonzero(np.arange(1, len(theirs) + 1) / len(theirs) <= fpr))
    return 1.0 if spared == len(theirs) else float(np.mean(ours < theirs[spared]))


def bootstrap_interval(
    forget: np.ndarray, holdout: np.ndarray, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile interval of the AUC; each class is resampled separately. NaN as in `auc`.

    Where the classes do not overlap, all resamples have the same AUC, and the interval of width 0 is too
    narrow.

    Raises:
        ValueError: a level outside 0 to 1, or no resamples.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level={level}, resamples={resamples}: give 0 < level < 1 and resamples ≥ 1")
    ours, theirs = np.sort(_measured(forget)), _measured(holdout)
    if not len(ours) or not len(theirs):
        return math.nan, math.nan
    draw = np.random.default_rng(seed)
    starts = len(ours) * np.arange(resamples)[:, None]
    places = draw.integers(len(ours), size=(resamples, len(ours))) + starts
    times = np.bincount(places.ravel(), minlength=resamples * len(ours)).reshape(resamples, -1)
    # [R, F + 1]: number of drawn forget scores among the lowest 0 … F of the sample.
    ranks = np.pad(np.cumsum(times, axis=1), ((0, 0), (1, 0)))
    drawn = draw.integers(len(theirs), size=(resamples, len(theirs)))
    twice = np.zeros(resamples)
    for side in ("left", "right"):
        twice += np.take_along_axis(ranks, np.searchsorted(ours, theirs, side)[drawn], axis=1).sum(axis=1)
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(twice / (2 * len(ours) * len(theirs)), tails)
    return float(low), float(high)


@dataclass(frozen=True)
class Attack:
    """AUC with its 95 % interval, and the share of members found by false-positive rate.

    `n_forget` and `n_holdout` count the measured examples.
    """

    auc: float
    low: float
    high: float
    tpr: dict[float, float]
    n_forget: int
    n_holdout: int


def attack(forget: np.ndarray, holdout: np.ndarray) -> Attack:
    """Return the AUC of one attack with its interval, and the true-positive rates."""
    low, high = bootstrap_interval(forget, holdout)
    return Attack(
        auc=auc(forget, holdout),
        low=low,
        high=high,
        tpr={fpr: tpr_at_fpr(forget, holdout, fpr) for fpr in FALSE_POSITIVE_RATES},
        n_forget=len(_measured(forget)),
        n_holdout=len(_measured(holdout)),
    )


def privleak(auc: float, retain_auc: float) -> float:
    """Return 100·(s − r)/r with s = 1 − `auc` and r = 1 − `retain_auc`, in percent; 0: like the retain model.

    Both arguments are AUCs of this module, 1: remembered. s and r are the AUCs of MUSE (arXiv 2407.06460,
    PrivLeak): the probability that a *forget* score exceeds a holdout one, 0: remembered. −100 is a model
    that remembers everything; above 0, over-unlearned. MUSE uses Min-K with k = 0.4 and gives r for its
    retrained models: 0.4772 (News), 0.5393 (Books).

    NaN for r = 0: the retain model distinguishes the sets perfectly, and the ratio has no value.
    (OpenUnlearning divides by r + 1e-10 and gives up to 10¹² there.)
    """
    unlearned, retained = 1 - auc, 1 - retain_auc
    return 100 * (unlearned - retained) / retained if retained != 0 else math.nan


def closeness(auc: float, retain_auc: float, form: ClosenessForm = "exponential") -> float:
    """Return how close an AUC is to the retain model's; 1: equal.

    `exponential`: 10^(−|Δ|/0.6), 0.1 for AUCs 0.6 apart. The form of the privacy score in OpenUnlearning's
    paper (arXiv 2506.12618) is unpublished; this is a guess by third parties, fitted to its value for the
    target. Values do not compare with that paper's tables.

    `relative`: 1 − min(|Δ| ÷ the retain model's AUC, 1), 0 for an AUC of twice the retain model's. The form
    of UDS (arXiv 2605.24614) for its published models. NaN if the retain model's AUC is 0.

    Raises:
        ValueError: `form` has another name.
    """
    difference = abs(auc - retain_auc)
    if form == "exponential":
        return math.exp(-math.log(10) / 0.6 * difference)
    if form != "relative":
        raise ValueError(f"closeness={form!r}: choose 'exponential' or 'relative'")
    if retain_auc == 0 or math.isnan(difference):
        return math.nan
    return 1 - min(difference / retain_auc, 1.0)


def _mean_of_lowest(rows: Ragged, k: float) -> np.ndarray:
    if not 0 < k <= 1:
        raise ValueError(f"k={k}: the share of tokens is above 0 and at most 1")
    means = np.full(len(rows), math.nan)
    for i, row in enumerate(rows):
        if len(row) and not np.isnan(row).any():
            means[i] = np.sort(row.astype(np.float64))[: max(1, int(k * len(row)))].mean()
    return means


def _measured(scores: np.ndarray) -> np.ndarray:
    return scores[~np.isnan(scores)]
