"""One number for a run from what the G-effect probe logged at several steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from launch.report.geffect import summaries
from launch.report.geffect.files import PREFIX, effect_rows
from launch.report.statistics import rank_correlation
from launch.report.traces import Row, number


def effects(history: Sequence[Row], layers: Mapping[str, int] | None = None) -> dict[str, float]:
    """Return what a run's measurements say together; {} for a run that was not watched.

    layers: the number of layers in each group.

    - `geffect/largest`: the largest absolute unlearning effect.
    - `geffect/rank_with_risk`: rank correlation of its size with the forget risk over the measurements.
    - `geffect/share/<group>`: mean share of a group of layers in the absolute effects of all.
    - `geffect/share_of_layer/<group>`: the same for one layer of the group, as groups differ in size.
    - `geffect/harmful`: share of the measurements at which the retaining effect is negative.
    """
    rows = [row for row in effect_rows(history) if _value(row, "unlearn") is not None]
    if not rows:
        return {}
    both = [(_value(row, "unlearn"), _value(row, "risk_forget")) for row in rows]
    pairs = [(abs(a), b) for a, b in both if a is not None and b is not None and math.isfinite(a + b)]
    measured = {
        "largest": summaries.largest(rows, f"{PREFIX}unlearn"),
        "rank_with_risk": rank_correlation(*zip(*pairs, strict=True)) if pairs else None,
        "harmful": summaries.negative(rows, f"{PREFIX}retain"),
    }
    shares = summaries.shares(rows, f"{PREFIX}unlearn")
    of_groups = {f"share/{group}": share for group, share in shares.items()}
    of_layers = {
        f"share_of_layer/{group}": shares[group] / count
        for group, count in (layers or {}).items()
        if group in shares
    }
    every = {**measured, **of_groups, **of_layers}
    return {f"{PREFIX}{name}": math.nan if value is None else value for name, value in every.items()}


def _value(row: Row, name: str) -> float | None:
    return number(row.get(f"{PREFIX}{name}"))
