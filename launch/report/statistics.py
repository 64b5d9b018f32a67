"""Means over runs, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from launch.report.results_table import format_value

_SMALLEST = 5e-324  # what a p-value of 0, which was rounded to that, is at most


class Interval(NamedTuple):
    """Mean over `n` seeds and half of its 95 % interval (Student's t); NaN of one seed."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return format_value(None)
        known = not math.isnan(self.half)
        return format_value(self.mean) + (f" ± {format_value(self.half)}" if known else "")


def interval(values: Iterable[float | None]) -> Interval:
    """Of the finite ones."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    n = len(known)
    if n < 2:
        return Interval(known[0] if known else math.nan, math.nan, n)
    spread = float(np.std(known, ddof=1)) / math.sqrt(n)
    if spread < 1e-12 * max(map(abs, known)):  # equal values, but for rounding
        spread = 0.0
    return Interval(float(np.mean(known)), float(stats.t.ppf(0.975, n - 1)) * spread, n)


class Mean(NamedTuple):
    """Over `n` runs with the 95 % interval (Student's t), whose ends are NaN for one run.

    Of forget quality it is the geometric mean, with the interval of its logarithm. `missing`: runs in which
    it was asked for and could not be measured.
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
        """± half of a symmetrical interval, the ends of another one; "" where there is none."""
        if math.isnan(self.low):
            return ""
        up, down = self.high - self.mean, self.mean - self.low
        if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-300):
            return f"± {format_value(up)}"
        return f"({format_value(self.low)} to {format_value(self.high)})"


def is_logarithmic(key: str) -> bool:
    """Whether a metric is averaged and drawn by its logarithm: p-values span hundreds of orders."""
    return key.split("/")[-1] == "forget_quality"


def mean(key: str, runs: Iterable[Mapping[str, float | None]]) -> Mean:
    """Of a metric over the results of some runs."""
    given = [results[key] for results in runs if key in results]
    known = [float(v) for v in given if v is not None and math.isfinite(v)]
    missing = len(given) - len(known)
    if not is_logarithmic(key):
        middle, half, n = interval(known)
        return Mean(middle, middle - half, middle + half, n, missing)
    middle, half, n = interval(math.log10(max(v, _SMALLEST)) for v in known)
    powers = [10.0 ** min(x, 0.0) for x in (middle, middle - half, middle + half)]
    middle, low, high = (math.nan if math.isnan(half) and i else p for i, p in enumerate(powers))
    return Mean(known[0] if n == 1 else middle, low, high, n, missing)
