"""The learning rate from the curvature along the update: AutoLR (arXiv 2410.22086) after GeN (2407.02772).

Pure functions of losses at w + m·ηd, where w − ηd are the weights after an update with rate η, so that
m = −1 is after it. The caller makes the forward passes at these weights (`Engine.with_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

THREE = (-1.0, 0.0, 1.0)
"""Multipliers: after the update, before it, and at the same distance in the opposite direction."""


@dataclass(frozen=True)
class Fit:
    """L(w + m·ηd) − L(w) ≈ ½a·x² − b·x in the multiplier of the update, x = −m.

    `a` is η²·dᵀHd and `b` is η·Gᵀd (2407.02772, section 3), so that x* = b/a updates lead to the minimum.
    `r2` is 1 − Σ(residual²)/Σ(difference²) over the probes other than 0: the share of the loss differences
    that the parabola through L(w) explains (not of their variance, as that parabola has no free constant).
    Three probes leave nothing to explain and give 1; more than three make it a test.
    """

    a: float
    b: float
    r2: float

    @property
    def best(self) -> float:
        """The multiplier x* of the smallest loss; NaN where the parabola has no minimum at x > 0."""
        return self.b / self.a if self.a > 0 and self.b > 0 else math.nan


def fit(losses: Sequence[float], multipliers: Sequence[float] = THREE) -> Fit:
    """Fit by least squares through the loss at multiplier 0; every value is NaN if a loss is not finite.

    Raises:
        ValueError: not one loss for each multiplier, no multiplier 0, or fewer than two others.
    """
    positions = np.asarray(multipliers, dtype=np.float64)
    values = np.asarray(losses, dtype=np.float64)
    if values.shape != positions.shape or np.count_nonzero(positions == 0) != 1 or len(set(multipliers)) < 3:
        raise ValueError(
            f"{values.size} losses at multipliers {list(multipliers)}: there must be one for each, exactly "
            "one multiplier 0 and at least two others"
        )
    if not np.isfinite(values).all():
        return Fit(math.nan, math.nan, math.nan)
    x = -positions[positions != 0]
    difference = values[positions != 0] - values[positions == 0]
    basis = np.stack([x * x / 2, -x], axis=1)
    # With symmetric probes this matrix is diagonal, so that a line has a curvature of exactly 0.
    a, b = np.linalg.solve(basis.T @ basis, basis.T @ difference)
    total = float(difference @ difference)
    residual = difference - basis @ (a, b)
    r2 = 1 - float(residual @ residual) / total if total > 0 else 0.0
    return Fit(float(a), float(b), r2)


@dataclass
class AutoLR:
    """A learning rate that follows η* = η·b/a, smoothed, and is unchanged where the fit is rejected.

    Every `every` steps the caller probes and calls `update`. If a loss is not finite, the rate is halved, as
    GeN's code does where its fit raises an exception.
    """

    lr: float
    every: int
    smooth: float = 0.9
    clip: float = 2.0
    r2: float = 0.99
    scale: float = 1.0
    multipliers: Sequence[float] = THREE
    _fit: Fit = field(default=Fit(math.nan, math.nan, math.nan), init=False)
    _proposed: float = field(default=math.nan, init=False)
    _accepted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        sound = {
            "lr": self.lr > 0, "every": self.every >= 1, "smooth": 0 <= self.smooth <= 1,
            "clip": self.clip >= 1, "scale": self.scale > 0,
        }  # fmt: skip
        wrong = [f"{name}={getattr(self, name)}" for name, fine in sound.items() if not fine]
        if wrong:
            raise ValueError(
                f"AutoLR with {', '.join(wrong)}: lr and scale are above 0, every and clip at least 1, "
                "smooth from 0 to 1"
            )

    def due(self, step: int) -> bool:
        """Return whether to probe around the update of this step, counted from 0."""
        return step % self.every == 0

    def update(self, losses: Sequence[float]) -> float:
        """Update the rate by the losses at `multipliers` times the update, and return it.

        lr ← smooth·lr + (1 − smooth)·scale·clamp(η*, lr/clip, lr·clip) if a > 0, b > 0 and the fit is as
        good as `r2`; lr/2 if a loss is not finite; else lr.
        """
        self._fit = fit(losses, self.multipliers)
        self._proposed = self.lr * self._fit.best
        self._accepted = math.isfinite(self._proposed) and self._fit.r2 >= self.r2
        if self._accepted:
            bounded = min(max(self._proposed, self.lr / self.clip), self.lr * self.clip)
            self.lr = self.smooth * self.lr + (1 - self.smooth) * self.scale * bounded
        elif math.isnan(self._fit.r2):
            self.lr /= 2
        return self.lr

    def log(self) -> dict[str, float]:
        """Return the rate and the last fit; NaN where it proposed no rate."""
        return {
            "autolr/lr": self.lr,
            "autolr/proposed": self._proposed,
            "autolr/a": self._fit.a,
            "autolr/b": self._fit.b,
            "autolr/r2": self._fit.r2,
            "autolr/accepted": float(self._accepted),
        }

    def state(self) -> dict[str, Any]:
        """Return everything that later rates depend on, as JSON."""
        return {"lr": self.lr}

    def load(self, state: Mapping[str, Any]) -> None:
        self.lr = float(state["lr"])
