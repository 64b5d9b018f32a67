"""Means over runs, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from eval.metric_catalog import info
from launch.report.results_table import format_value

P_VALUE = "p-value"
"""The unit of such metrics in the METRICS of a benchmark."""
_SMALLEST = 5e-324  # upper bound of a p-value that was rounded to 0


class Interval(NamedTuple):
    """Mean over `n` seeds and half of its 95 % interval (Student's t), NaN for one seed."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return format_value(None)
        known = not math.isnan(self.half)
        return format_value(self.mean) + (f" ± {format_value(self.half)}" if known else "")


def interval(values: Iterable[float | None]) -> Interval:
    """Return the interval of the values that are finite."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    n = len(known)
    if n < 2:
        return Interval(known[0] if known else math.nan, math.nan, n)
    spread = float(np.std(known, ddof=1)) / math.sqrt(n)
    if spread < 1e-12 * max(map(abs, known)):  # equal values, except for rounding
        spread = 0.0
    return Interval(float(np.mean(known)), float(stdtrit(n - 1, 0.975)) * spread, n)


class Mean(NamedTuple):
    """Mean over `n` runs and the ends of its 95 % interval (Student's t), NaN for one run.

    Of p-values it is the geometric mean, with the interval of the logarithm. `missing`: runs in which the
    metric could not be measured.
    """

    mean: float
    low: float
    high: float
    n: int
    missing: int = 0

    def __str__(self) -> str:
        return format_value(self.mean) + (f" {self.spread}" if self.spread else "")

    @property
    def spread(self) -> str:
        """The interval as text: ± half if it is symmetrical, else its ends; "" for one run."""
        if math.isnan(self.low):
            return ""
        up, down = self.high - self.mean, self.mean - self.low
        if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-300):
            return f"± {format_value(up)}"
        return f"({format_value(self.low)} to {format_value(self.high)})"


def is_logarithmic(key: str) -> bool:
    """Whether a metric is averaged and drawn by its logarithm: p-values span hundreds of orders."""
    declared = info(key).declared
    return declared is not None and declared.unit == P_VALUE


def mean(key: str, runs: Iterable[Mapping[str, float | None]]) -> Mean:
    """Return the mean of a metric over the results of some runs."""
    values = [results[key] for results in runs if key in results]
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    missing = len(values) - len(known)
    if not is_logarithmic(key):
        middle, half, n = interval(known)
        return Mean(middle, middle - half, middle + half, n, missing)
    middle, half, n = interval(math.log10(max(v, _SMALLEST)) for v in known)
    powers = [10.0 ** min(x, 0.0) for x in (middle, middle - half, middle + half)]
    middle, low, high = (math.nan if math.isnan(half) and i else p for i, p in enumerate(powers))
    return Mean(known[0] if n == 1 else middle, low, high, n, missing)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation with mean ranks of ties; NaN for fewer than three or constants."""
    from scipy.stats import spearmanr  # half a second that only studies need

    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(spearmanr(x, y).statistic)
