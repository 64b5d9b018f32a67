"""One number for a run from the steps at which the G-effect was measured; only finite values count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from launch.report.traces import Row, number
from unlearn.probes.geffect.parameter_groups import GROUPS


def finite(rows: Sequence[Row], key: str) -> list[float]:
    """Return the values of a key."""
    return [v for row in rows if (v := number(row.get(key))) is not None and math.isfinite(v)]


def largest(rows: Sequence[Row], key: str) -> float | None:
    """Return the largest absolute value."""
    return max(map(abs, finite(rows, key)), default=None)


def negative(rows: Sequence[Row], key: str) -> float | None:
    """Return the share of the steps at which the value is below zero."""
    known = finite(rows, key)
    return float(np.mean([v < 0 for v in known])) if known else None


def shares(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Return each group of layers' share in the absolute effects of all, the mean over the steps.

    A step without an effect is left out; {} where none has one.
    """
    of_steps = []
    for row in rows:
        sizes = [sum(map(abs, finite([row], f"{key}/{group}"))) for group in GROUPS]
        if whole := sum(sizes):
            of_steps.append([size / whole for size in sizes])
    return dict(zip(GROUPS, np.mean(of_steps, axis=0).tolist(), strict=True)) if of_steps else {}
