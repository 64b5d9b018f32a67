"""Rank the rows of a column: which is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.metric_catalog import info
from launch.report.compare.rows import Row

CHANCE = 0.5  # AUC of a membership attack that cannot tell members from others


def distance(key: str, value: float, anchors: Sequence[Row] = ()) -> float:
    """Return how far a value is from the best one; only the order of distances has a meaning.

    NaN where no direction is declared.
    """
    way = info(key).direction[:1]
    if way in ("↑", "↓"):
        return -value if way == "↑" else value
    return abs(value - best_value(key, anchors)) if way == "→" else math.nan


def best_value(key: str, anchors: Sequence[Row]) -> float:
    """Return the target value of a metric with an optimum: 0 or, if declared so, the retain model's value."""
    if "retain model" not in info(key).direction:
        return 0.0
    known = [row.mean(key).mean for row in anchors if row.kind == "retain model"]
    return next((value for value in known if not math.isnan(value)), CHANCE)


def ranks(key: str, rows: Sequence[Row], anchors: Sequence[Row] = ()) -> list[int | None]:
    """Return for each row 1 where its mean is the best, 2 where it is the second best, else None.

    All None unless there are two different values.
    """
    far = [distance(key, row.mean(key).mean, anchors) for row in rows]
    known = sorted({value for value in far if not math.isnan(value)})
    if len(known) < 2:
        return [None] * len(rows)
    places = {value: place for place, value in enumerate(known[:2], start=1)}
    return [places.get(value) for value in far]
