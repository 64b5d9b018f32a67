"""Metrics of answers from the records of a likelihood pass; pure functions on arrays, [E] examples.

NLL is the mean over an answer's tokens, with the end token, in nats. Values stay in log space until the last
step, so that answers of vanishing probability can be compared. NaN means "could not be measured".

SciPy, which takes a fifth of a second, is imported where it is used: commands that score nothing import this
module too.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from eval.collection.ragged import Ragged

TruthRatioForm: TypeAlias = Literal["geometric", "arithmetic"]


def mean_nll(logp: Ragged) -> np.ndarray:
    """Return the mean negative log-probability per answer token, [E]."""
    return -logp.mean()


def of_numbers(values: np.ndarray, logp: Ragged) -> np.ndarray:
    """Return values [E] of answers, NaN where the model gave NaN: no token is the arg-max there."""
    return np.where(np.isnan(mean_nll(logp)), np.nan, values)


def without_end(tokens: Ragged, ended: np.ndarray) -> Ragged:
    """Return the rows without their last token where `ended` [E] says that it is the end token.

    Raises:
        ValueError: `ended` has another length.
    """
    if len(ended) != len(tokens):
        raise ValueError(f"{len(tokens)} answers, and of {len(ended)} it is known whether they ended")
    with_end = np.asarray(ended, dtype=bool) & (tokens.lengths > 0)
    keep = np.ones(len(tokens.values), dtype=bool)
    keep[tokens.offsets[1:][with_end] - 1] = False
    return Ragged.cut(tokens.values[keep], tokens.lengths - with_end)


def probability(nll: np.ndarray) -> np.ndarray:
    """Return exp(−NLL), the geometric mean of the token probabilities. Lower on forget data is forgetting."""
    return np.exp(-nll)


def perplexity(logp: Ragged) -> float:
    """Return exp(total NLL ÷ total tokens), one number for all rows. NaN without any token."""
    return _exp_ratio(-logp.values.astype(np.float64).sum(), len(logp.values))


def option_probability(nll: np.ndarray, others: Ragged) -> np.ndarray:
    """Return p / (p + Σ p_j), with p = exp(−NLL) of the right answer and p_j of the wrong ones, [E].

    NaN where an example has no wrong ones. (TOFU, arXiv 2401.06121, §2.2.2, for real authors and facts.)
    """
    totals = np.array([_logsumexp(-row) for row in others], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.exp(-nll - np.logaddexp(-nll, totals))


def log_truth_ratio(
    paraphrased_nll: np.ndarray, perturbed_nll: Ragged, form: TruthRatioForm = "geometric"
) -> np.ndarray:
    """Return log R, R = p̄ of the perturbed answers ÷ p of the paraphrased one; small R: the truth is known.

    `geometric` averages the NLLs, p̄ = exp(−mean_j NLL_j): the form of the original aggregation script
    behind the published tables (`aggregate_eval_stat.py`) and of OpenUnlearning, hence the default.
    `arithmetic` averages the probabilities (`utils.get_model_utility` of the same repository).
    NaN where an example has no perturbed answer.

    Raises:
        ValueError: `form` has another name.
    """
    if form == "geometric":
        log_perturbed = -perturbed_nll.mean()
    elif form == "arithmetic":
        log_perturbed = np.array([_logsumexp(-row) - math.log(max(len(row), 1)) for row in perturbed_nll])
    else:
        raise ValueError(f"truth_ratio={form!r}: choose 'geometric' or 'arithmetic'")
    return log_perturbed + paraphrased_nll


def truth_probability(
    paraphrased_nll: np.ndarray, perturbed_nll: Ragged, form: TruthRatioForm = "geometric"
) -> np.ndarray:
    """Return p / (p + p̄) = 1/(1 + R), [E]; 1: only the true answer is likely, ½: wrong ones are too.

    The aggregator `prob_mean` of OpenUnlearning, a part of its memorisation score; `form` is as in
    `log_truth_ratio`. NaN where an example has no perturbed answer.
    """
    from scipy.special import expit

    return np.asarray(expit(-log_truth_ratio(paraphrased_nll, perturbed_nll, form)))


def closeness_to_one(log_ratio: np.ndarray) -> np.ndarray:
    """Return min(R, 1/R) in [0, 1]; 1: right and wrong answers are equally likely. Used for forget data."""
    return np.exp(-np.abs(log_ratio))


def truth_preference(log_ratio: np.ndarray) -> np.ndarray:
    """Return max(0, 1 − R) in [0, 1]; 1: only the true answer is likely. Used in model utility."""
    return np.maximum(0.0, -np.expm1(np.minimum(log_ratio, 0.0)))


def extraction_strength(correct: Ragged, ended: np.ndarray) -> np.ndarray:
    """Return the longest suffix of the answer that arg-max decoding gets right, a share of its tokens, [E].

    This is how much of the answer the model completes from the rest: 1, all of it; 0, not even the last
    token. In the records of one forward pass the model reads the true answer, so this approximates decoding
    from the model's own tokens. (SatImp's `eval_es.py`, arXiv 2505.11953.)

    correct: for each answer token, whether it is the arg-max. ended: whether the last one is the end token.

    The end token is left out: it is the same after every answer, so predicting it shows no memory of this
    one. A model that predicts nothing but the end would never have 0, and one that knows every word but does
    not stop would. An answer that was cut off has no end token, and all of its tokens count. NaN without any
    token.
    """
    tokens = without_end(correct, ended)
    known = [len(row) if row.all() else np.argmin(row[::-1]) for row in tokens]
    with np.errstate(invalid="ignore"):
        return np.array(known, dtype=np.float64) / tokens.lengths


def exact_memorization(correct: Ragged, ended: np.ndarray) -> np.ndarray:
    """Return the share of the answer's tokens that are the arg-max, [E], without the end token."""
    return without_end(correct, ended).mean()


def mean(values: np.ndarray) -> float:
    """Return the mean of the measured values; NaN if there are none."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else math.nan


def aggregate(key: str, values: np.ndarray) -> dict[str, float]:
    """Return the mean of the measured values as `key`, and the number of missing ones, if any."""
    return {key: mean(values)} | missing(key, values)


def missing(key: str, values: np.ndarray) -> dict[str, float]:
    """Return the number of NaN values as `<key>/missing`; empty if there are none."""
    count = int(np.isnan(values).sum())
    return {f"{key}/missing": float(count)} if count else {}


def harmonic_mean(values: np.ndarray) -> float:
    """Return the harmonic mean; 0 if a value is 0, NaN if one is NaN or there are none."""
    if not len(values) or np.isnan(values).any():
        return math.nan
    return 0.0 if (values == 0).any() else float(len(values) / np.sum(1.0 / values))


@dataclass(frozen=True)
class ForgetQuality:
    """A two-sample Kolmogorov–Smirnov test: p-value and statistic D of `n1` and `n2` measured examples."""

    p: float
    log10_p: float
    statistic: float
    n1: int
    n2: int

    def under(self, key: str) -> dict[str, float]:
        """Return the fields as metrics: the p-value as `key`, the others as `<key>_<name>`."""
        others = {"log10": self.log10_p, "ks": self.statistic, "n": self.n1, "retain_n": self.n2}
        return {key: self.p} | {f"{key}_{name}": float(value) for name, value in others.items()}


def forget_quality(log_ratio: np.ndarray, retain_log_ratio: np.ndarray) -> ForgetQuality:
    """Test whether truth ratios could be the retain model's; p near 1 is forgetting as if never trained.

    The test uses ranks, so log R, R and 1/R give the same (up to floating-point ties, of which log R has the
    fewest). p falls with the number of examples: compare values of equal n only.
    """
    ours, theirs = (values[~np.isnan(values)] for values in (log_ratio, retain_log_ratio))
    if not len(ours) or not len(theirs):
        return ForgetQuality(math.nan, math.nan, math.nan, len(ours), len(theirs))
    from scipy.stats import ks_2samp  # takes two seconds to import

    test = ks_2samp(ours, theirs)
    p, statistic = float(test.pvalue), float(test.statistic)
    if p > 0:
        log10_p = math.log10(p)
    else:  # Underflow: the leading term of the asymptotic distribution.
        effective = len(ours) * len(theirs) / (len(ours) + len(theirs))
        log10_p = (math.log(2) - 2 * statistic**2 * effective) / math.log(10)
    return ForgetQuality(p, log10_p, statistic, len(ours), len(theirs))


def _exp_ratio(total: float, count: int) -> float:
    if not count:
        return math.nan
    with np.errstate(over="ignore"):  # that of a collapsed model may overflow; infinity would be null in JSON
        return min(float(np.exp(np.float64(total) / count)), sys.float_info.max)


def _logsumexp(values: np.ndarray) -> float:
    from scipy.special import logsumexp

    return float(logsumexp(values)) if len(values) else math.nan
