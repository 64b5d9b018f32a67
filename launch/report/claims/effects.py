"""One number for a run from what the G-effect probe logged at several steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launch.report.claims.trial import rank_correlation
from launch.report.geffect.files import PREFIX, effect_rows
from launch.report.traces import Row, number
from unlearn.probes.geffect.parameter_groups import GROUPS


def effects(history: Sequence[Row]) -> dict[str, float]:
    """Return what a run's measurements say together; {} for a run that was not watched.

    - `geffect/largest`: the largest absolute unlearning effect.
    - `geffect/rank_with_risk`: rank correlation of its size with the forget risk over the measurements.
    - `geffect/share/<group>`: mean share of a group of layers in the absolute effects of all.
    - `geffect/harmful`: share of the measurements at which the retaining effect is negative.
    """
    rows = [row for row in effect_rows(history) if _value(row, "unlearn") is not None]
    if not rows:
        return {}
    sizes = [abs(_known(row, "unlearn")) for row in rows]
    pairs = [(size, _known(row, "risk_forget")) for size, row in zip(sizes, rows, strict=True)]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    retain = [value for row in rows if (value := _value(row, "retain")) is not None]
    measured = {
        "largest": max(filter(math.isfinite, sizes), default=math.nan),
        "rank_with_risk": rank_correlation(*zip(*pairs, strict=True)) if pairs else math.nan,
        "harmful": sum(value < 0 for value in retain) / len(retain) if retain else math.nan,
    }
    return {f"{PREFIX}{name}": value for name, value in {**measured, **_shares(rows)}.items()}


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean share of each group over the measurements that have an effect."""
    shares: list[list[float]] = []
    for row in rows:
        sizes = [abs(value) if math.isfinite(value := _known(row, f"unlearn/{g}")) else 0.0 for g in GROUPS]
        if whole := sum(sizes):
            shares.append([size / whole for size in sizes])
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    return {f"share/{group}": value for group, value in zip(GROUPS, means, strict=False)}


def _value(row: Row, name: str) -> float | None:
    return number(row.get(f"{PREFIX}{name}"))


def _known(row: Row, name: str) -> float:
    value = _value(row, name)
    return math.nan if value is None else value
