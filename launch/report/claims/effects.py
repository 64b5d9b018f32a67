"""One number for a run from what the G-effect probe logged at several steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launch.report.claims.trial import rank_correlation
from launch.report.geffect.files import PREFIX, effect_rows
from launch.report.traces import Row, number

GROUPS = ("embedding", "shallow", "middle", "deep", "head", "other")


def effects(history: Sequence[Row]) -> dict[str, float]:
    """Return what a run's measurements say together; {} for a run that was not watched.

    - `geffect/largest`: the largest absolute unlearning effect.
    - `geffect/rank_with_risk`: rank correlation of its size with the forget risk over the measurements.
    - `geffect/share/<group>`: share of a group of layers in the sum of absolute effects.
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
        "largest": max(sizes),
        "rank_with_risk": rank_correlation(*zip(*pairs, strict=True)) if pairs else math.nan,
        "harmful": sum(value < 0 for value in retain) / len(retain) if retain else math.nan,
    }
    sums = {
        group: sum(abs(value) for row in rows if (value := _value(row, f"unlearn/{group}")) is not None)
        for group in GROUPS
    }
    whole = sum(sums.values())
    shares = {f"share/{group}": part / whole for group, part in sums.items()} if whole > 0 else {}
    return {f"{PREFIX}{name}": value for name, value in {**measured, **shares}.items()}


def _value(row: Row, name: str) -> float | None:
    return number(row.get(f"{PREFIX}{name}"))


def _known(row: Row, name: str) -> float:
    value = _value(row, name)
    return math.nan if value is None else value
