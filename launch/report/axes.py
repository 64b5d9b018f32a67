"""Axes and colours for values of either sign that may span many orders of magnitude."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from launch.report.traces import number

WIDE = 300.0  # ratio of the largest value to the tenth percentile above which the axis is logarithmic
_DEEPEST = 1e-8  # smaller values, as shares of the largest one, count as zero
_MAX_TICKS = 4  # of each sign


@dataclass(frozen=True)
class Signed:
    """A linear axis (`unit` None), or arsinh(value / unit) / ln 10: logarithmic on both sides of zero."""

    unit: float | None = None
    largest: float = 1.0

    def place(self, value: float | None) -> float | None:
        """Return the position of a value on the axis, None for None and values that are not finite."""
        if value is None or not math.isfinite(value):
            return None
        return value if self.unit is None else math.asinh(value / self.unit) / math.log(10)

    @property
    def reach(self) -> float:
        """The position of the largest absolute value."""
        return self.place(self.largest) or 1.0

    @property
    def ticks(self) -> dict[str, Any]:
        """`tickvals` and `ticktext` in powers of ten; nothing for a linear axis."""
        if self.unit is None:
            return {}
        first, last = math.ceil(math.log10(self.unit) - 1e-9), math.floor(math.log10(self.largest) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / _MAX_TICKS))
        powers = list(range(last, first - 1, -every))[::-1]
        signed = [(-1, k) for k in reversed(powers)] + [(0, 0)] + [(1, k) for k in powers]
        return {
            "tickmode": "array",
            "tickvals": [self.place(sign * 10.0**k) for sign, k in signed],
            "ticktext": [f"{'−' * (sign < 0)}10<sup>{k}</sup>" if sign else "0" for sign, k in signed],
        }

    @property
    def note(self) -> str:
        return "" if self.unit is None else "logarithmic on both sides of 0"


def signed(values: Iterable[Any]) -> Signed:
    """Return the axis for these values: logarithmic if a linear one would hide most of them."""
    sizes = sorted(abs(v) for value in values if (v := number(value)) and math.isfinite(v))
    if not sizes:
        return Signed()
    low, largest = sizes[len(sizes) // 10], sizes[-1]
    if largest / low < WIDE:
        return Signed(None, largest)
    return Signed(max(low, largest * _DEEPEST), largest)
