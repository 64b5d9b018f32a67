"""Paired differences over seeds, and the verdict on a claim; pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from launch.report.statistics import interval

Verdict = Literal["holds", "does not hold", "cannot tell"]
LEVEL = 0.05
"""Probability of an error: intervals have 95 %, and a contradiction counts below this adjusted p."""
_SHOWN = 3  # comparisons that a reason names


@dataclass(frozen=True)
class Difference:
    """A paired difference in the claimed direction: positive if the claim is right.

    label: what is compared. mean, half: over `n` seeds, and half of the 95 % interval (Student's t). least:
    the claimed difference is larger than this: 0, below it for "not worse by more than", above it for "by at
    least". missing: why there is no difference, "" where there is one. means: of both sides. beyond: both
    leave no more than a model that never saw the forget set, in every seed, so that the difference is 0.
    """

    label: str
    mean: float = math.nan
    half: float = math.nan
    n: int = 0
    least: float = 0.0
    missing: str = ""
    means: tuple[float, ...] = ()
    beyond: bool = False

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def known(self) -> bool:
        return not self.missing and self.n >= 2

    @property
    def above(self) -> bool:
        """Whether the interval is above `least`."""
        return self.known and self.low > self.least

    @property
    def below(self) -> bool:
        """Whether the interval is below `least`."""
        return self.known and self.high < self.least

    @property
    def against(self) -> float:
        """Return the p-value of a difference that is at least `least`; 1 where it is not below, or not known.

        It is doubled, as for an interval on both sides.
        """
        if not self.known or self.mean >= self.least:
            return 1.0
        if self.half == 0:
            return 0.0
        t = (self.mean - self.least) / (self.half / stdtrit(self.n - 1, 1 - LEVEL / 2))
        return float(2 * stdtr(self.n - 1, t))


@dataclass(frozen=True)
class Outcome:
    """The verdict with its reason, a sentence without a full stop, and what it is of."""

    verdict: Verdict
    reason: str
    differences: Sequence[Difference] = ()


def difference(label: str, values: Sequence[float], least: float = 0.0) -> Difference:
    """Return the difference of these values, one for each seed, in the claimed direction.

    A seed whose value is not finite makes it missing: leaving it out would favour the method that broke.
    """
    broken = sum(not math.isfinite(value) for value in values)
    if broken:
        return Difference(label, least=least, missing=f"{broken} of {len(values)} values are not finite")
    if len(values) < 2:
        seeds = f"{len(values)} seed{'s' if len(values) != 1 else ''} in common"
        return Difference(label, n=len(values), least=least, missing=f"{seeds}, at least two are needed")
    mean, half, n = interval(values)
    return Difference(label, mean, half, n, least)


def judged(differences: Sequence[Difference]) -> Outcome:
    """Return the verdict on a claim that all of these differences are larger than their `least`.

    It holds if every 95 % interval is above; a claim about all is as strong as its weakest part, so nothing
    is adjusted. It does not hold if one difference is below with p < 0.05 after Holm's adjustment for their
    number. Else the runs cannot tell.
    """
    adjusted = holm([each.against for each in differences])
    against = [(each, p) for each, p in zip(differences, adjusted, strict=True) if p < LEVEL]
    if against:
        named = "; ".join(f"{each.label} {written(each)}, adjusted p {p:.2g}" for each, p in against[:_SHOWN])
        more = f" and {len(against) - _SHOWN} more" if len(against) > _SHOWN else ""
        return Outcome(
            "does not hold", f"{len(against)} of {len(differences)} against it: {named}{more}", differences
        )
    missing = [each for each in differences if not each.known]
    open_ = [each for each in differences if each.known and not each.above]
    if differences and not missing and not open_:
        return Outcome("holds", f"{_all(len(differences))} above {_bound(differences)}", differences)
    reasons = []
    if open_:
        named = "; ".join(
            f"{each.label} {written(each)}{' †' if each.beyond else ''}" for each in open_[:_SHOWN]
        )
        more = f" and {len(open_) - _SHOWN} more" if len(open_) > _SHOWN else ""
        count = f"{len(open_)} of {len(differences)} intervals not above {_bound(open_)}"
        reasons.append(f"{count}: {named}{more}")
    reasons += list(dict.fromkeys(f"{each.label}: {each.missing}" for each in missing))[:_SHOWN]
    if len(missing) > _SHOWN:
        reasons.append(f"{len(missing) - _SHOWN} more are missing")
    return Outcome("cannot tell", "; ".join(reasons) or "nothing to compare", differences)


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's method."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = largest
    return adjusted


def spread(values: Sequence[float]) -> float:
    """Return the largest minus the smallest value, NaN if one is not finite."""
    return float(np.max(values) - np.min(values)) if len(values) else math.nan


def written(each: Difference) -> str:
    """Write a difference with its interval."""
    if not each.known:
        return f"– ({each.missing})"
    return f"{each.mean:+.3f} ({each.low:+.3f} to {each.high:+.3f})"


def _all(count: int) -> str:
    return "the interval is" if count == 1 else f"all {count} intervals are"


def _bound(differences: Sequence[Difference]) -> str:
    bounds = {each.least for each in differences}
    return f"{bounds.pop():g}" if len(bounds) == 1 else "their bounds"
