"""Metrics of answers that a likelihood pass recorded; pure functions on arrays, [E] examples.

NLL is the mean over an answer's tokens, the end token included, in nats. Everything stays in log space
until the last step, so that answers of vanishing probability still compare. NaN means "could not be
measured".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import expit, logsumexp

from eval.collection.ragged import Ragged

TruthRatioForm: TypeAlias = Literal["geometric", "arithmetic"]


def mean_nll(logp: Ragged) -> np.ndarray:
    """Mean negative log-probability per answer token, [E]."""
    return -logp.mean()


def without_end(tokens: Ragged, ended: np.ndarray) -> Ragged:
    """The rows without their last token where `ended` [E] says that it is the end token."""
    if len(ended) != len(tokens):
        raise ValueError(f"{len(tokens)} answers, and of {len(ended)} it is known whether they ended")
    with_end = np.asarray(ended, dtype=bool) & (tokens.lengths > 0)
    keep = np.ones(len(tokens.values), dtype=bool)
    keep[tokens.offsets[1:][with_end] - 1] = False
    return Ragged.cut(tokens.values[keep], tokens.lengths - with_end)


def probability(nll: np.ndarray) -> np.ndarray:
    """exp(−NLL): the geometric mean of the token probabilities. Lower on forget data is forgetting."""
    return np.exp(-nll)


def perplexity(logp: Ragged) -> float:
    """exp(total NLL ÷ total tokens): one number of all rows, long ones count more. NaN without any token."""
    return _exp_ratio(-logp.values.astype(np.float64).sum(), len(logp.values))


def option_probability(nll: np.ndarray, others: Ragged) -> np.ndarray:
    """p / (p + Σ p_j), with p = exp(−NLL) of the right answer and p_j those of the wrong ones.

    NaN where an example has no wrong ones. (TOFU, arXiv 2401.06121, §2.2.2, for real authors and facts.)
    """
    totals = np.array([_logsumexp(-row) for row in others], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.exp(-nll - np.logaddexp(-nll, totals))


def log_truth_ratio(
    paraphrased_nll: np.ndarray, perturbed_nll: Ragged, form: TruthRatioForm = "geometric"
) -> np.ndarray:
    """log R, R = p̄ of the perturbed answers ÷ p of the paraphrased one; small R: the truth is known.

    `geometric` averages the NLLs, p̄ = exp(−mean_j NLL_j): the form of the original aggregation script
    behind the published tables (`aggregate_eval_stat.py`) and of OpenUnlearning, hence the default.
    `arithmetic` averages the probabilities (`utils.get_model_utility` of the same repository).
    NaN where an example has no perturbed answer.
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
    """p / (p + p̄) = 1/(1 + R), [E]; 1: only the true answer is likely, ½: the wrong ones are as likely.

    The aggregator `prob_mean` of OpenUnlearning, which enters its memorisation score; `form` as in
    `log_truth_ratio`. NaN where an example has no perturbed answer.
    """
    return np.asarray(expit(-log_truth_ratio(paraphrased_nll, perturbed_nll, form)))


def closeness_to_one(log_ratio: np.ndarray) -> np.ndarray:
    """min(R, 1/R) in [0, 1]; 1: right and wrong answers are as likely. What forget data reports."""
    return np.exp(-np.abs(log_ratio))


def truth_preference(log_ratio: np.ndarray) -> np.ndarray:
    """max(0, 1 − R) in [0, 1]; 1: only the true answer is likely. What model utility uses."""
    return np.maximum(0.0, -np.expm1(np.minimum(log_ratio, 0.0)))


def extraction_strength(correct: Ragged, ended: np.ndarray) -> np.ndarray:
    """Tokens of the longest end of the answer that arg-max decoding gets right, ÷ all of its tokens; [E].

    How much of the answer the model completes once it is given the rest: 1, all of it; 0, not even the last
    token. On the records of one forward the model reads the true answer, so this approximates decoding from
    its own tokens. (SatImp's `eval_es.py`, arXiv 2505.11953.)

    correct: for each answer token, whether it is the arg-max. ended: whether the last one is the end token.

    The end token is left out. It is the same after every answer, so predicting it is a habit and no memory of
    this one: a model that knows nothing else would never fall to 0, and one that knows every word but runs on
    would. An answer that was cut off has no end token, and all of its tokens count. NaN without any token.
    """
    tokens = without_end(correct, ended)
    known = [len(row) if row.all() else np.argmin(row[::-1]) for row in tokens]
    with np.errstate(invalid="ignore"):
        return np.array(known, dtype=np.float64) / tokens.lengths


def exact_memorization(correct: Ragged, ended: np.ndarray) -> np.ndarray:
    """Share of the answer's tokens that are the arg-max, [E]; the end token as in `extraction_strength`."""
    return without_end(correct, ended).mean()


def mean(values: np.ndarray) -> float:
    """Mean of what could be measured; NaN if nothing could."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else math.nan


def aggregate(key: str, values: np.ndarray) -> dict[str, float]:
    """The mean of what could be measured under `key`, and how many could not be, if any."""
    return {key: mean(values)} | missing(key, values)


def missing(key: str, values: np.ndarray) -> dict[str, float]:
    count = int(np.isnan(values).sum())
    return {f"{key}/missing": float(count)} if count else {}


def harmonic_mean(values: np.ndarray) -> float:
    """0 if any is 0, NaN if any is NaN or there are none. Model utility is that of nine numbers."""
    if not len(values) or np.isnan(values).any():
        return math.nan
    return 0.0 if (values == 0).any() else float(len(values) / np.sum(1.0 / values))


@dataclass(frozen=True)
class ForgetQuality:
    """Two-sample Kolmogorov–Smirnov test: p-value and statistic D of `n1` and `n2` measured examples."""

    p: float
    log10_p: float
    statistic: float
    n1: int
    n2: int

    def under(self, key: str) -> dict[str, float]:
        """All of it as metrics: the p-value under `key`, the rest beside it."""
        beside = {"log10": self.log10_p, "ks": self.statistic, "n": self.n1, "retain_n": self.n2}
        return {key: self.p} | {f"{key}_{name}": float(value) for name, value in beside.items()}


def forget_quality(log_ratio: np.ndarray, retain_log_ratio: np.ndarray) -> ForgetQuality:
    """Whether truth ratios could be the retain model's; p near 1 is forgetting as if never trained.

    The test sees ranks alone, so log R, R and 1/R give the same (up to floating-point ties, of which log R
    has fewest). p falls with the number of examples: compare values of equal n only.
    """
    ours, theirs = (values[~np.isnan(values)] for values in (log_ratio, retain_log_ratio))
    if not len(ours) or not len(theirs):
        return ForgetQuality(math.nan, math.nan, math.nan, len(ours), len(theirs))
    from scipy.stats import ks_2samp  # takes two seconds, and many that import this never come here

    test = ks_2samp(ours, theirs)
    p, statistic = float(test.pvalue), float(test.statistic)
    if p > 0:
        log10_p = math.log10(p)
    else:  # Underflow: the leading term of the asymptotic distribution.
        effective = len(ours) * len(theirs) / (len(ours) + len(theirs))
        log10_p = (math.log(2) - 2 * statistic**2 * effective) / math.log(10)
    return ForgetQuality(p, log10_p, statistic, len(ours), len(theirs))


def _exp_ratio(total: float, count: int) -> float:
    with np.errstate(over="ignore"):  # a model that collapsed may well have a perplexity beyond a float
        return float(np.exp(np.float64(total) / count)) if count else math.nan


def _logsumexp(values: np.ndarray) -> float:
    return float(logsumexp(values)) if len(values) else math.nan
