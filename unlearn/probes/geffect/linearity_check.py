"""Compare the first-order prediction −η·e with the change by one small step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlearn.models.stored import elements
from unlearn.probes.geffect.example_effects import ExampleEffects, Points
from unlearn.training.engine import Engine

_NEAR = 0.1
"""Distance of the points between which curvature is measured, in steps: small for the third order, large for
rounding."""


@dataclass(frozen=True)
class Change:
    """Changes of each example's mean NLL by a step of size `eta` along −∇L, in nats, [E] each."""

    eta: float
    predicted: np.ndarray
    true: np.ndarray
    second: np.ndarray | None = None


@torch.no_grad()
def changes(
    effects: ExampleEffects, points: Mapping[str, Points], known: Mapping[str, tuple[np.ndarray, np.ndarray]],
    gradient: list[Tensor], rate: float, *, second: bool,
) -> dict[str, Change]:  # fmt: skip
    """Return predicted and true changes for each set; empty where the gradient is zero. A collective.

    `known`: for each set, ⟨∇ of mean NLL, ∇L⟩ and the mean NLL of its examples at these weights, [E] each.

    The step has the length of a step of AdamW, which moves every weight by about the learning rate:
    η = rate·√P/‖∇L‖ for P trained weights. The second order adds ½η²·∇LᵀH∇L, computed by a central
    difference of exact directional derivatives.
    """
    engine = effects.engine
    length = float(engine.gram([gradient])[0, 0].sqrt())
    if not points or not length:
        return {}
    eta = rate * math.sqrt(_weights(engine)) / length
    whole = effects.whole(gradient) if second else {}
    along = engine.as_live(gradient)

    def moved(by: float) -> list[Tensor]:
        return [w.detach().float() - by * g.to(w.device) for w, g in zip(engine.live(), along, strict=True)]

    by_set = {}
    for name, own in points.items():
        first, before = known[name]
        with engine.with_weights(moved(eta)):
            true = effects.risks(own) - before
        curved = None
        if second:
            ends = []
            for by in (-_NEAR * eta, _NEAR * eta):
                with engine.with_weights(moved(by)):
                    ends.append(_slopes(effects, own, whole))
            curvature = (ends[0] - ends[1]) / (2 * _NEAR * eta)
            curved = -eta * first + 0.5 * eta**2 * curvature
        by_set[name] = Change(eta, -eta * first, true, curved)
    return by_set


def _slopes(effects: ExampleEffects, points: Points, direction: Mapping[str, Tensor]) -> np.ndarray:
    """Return ⟨∇ of each example's mean NLL, direction⟩, [E]."""
    return np.array(
        [float(effect.mean(dtype=np.float64)) for _, effect in effects.by_token(points, direction)]
    )


def _weights(engine: Engine) -> int:
    return elements(p for p in engine.module.parameters() if p.requires_grad)


def agreement(sets: Mapping[str, Change], *, second: bool = False) -> dict[str, float]:
    """Return the correlation of prediction and true change over all points, and the share explained."""
    true = np.concatenate([each.true for each in sets.values()])
    guess = np.concatenate([_guess(each, second) for each in sets.values()])
    spread = float(true.std() * guess.std())
    correlation = (
        float(((true - true.mean()) * (guess - guess.mean())).mean()) / spread if spread else math.nan
    )
    total = float(np.square(true).sum())
    return {
        "correlation": correlation,
        "explained": 1 - float(np.square(true - guess).sum()) / total if total else math.nan,
    }


def _guess(change: Change, second: bool) -> np.ndarray:
    if second:
        assert change.second is not None
        return change.second
    return change.predicted
