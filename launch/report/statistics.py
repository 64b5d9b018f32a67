"""Means over runs that differ in the seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats

from launch.report.results_table import format_value


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
