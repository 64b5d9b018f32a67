"""The normalised gradient difference of NGDiff (arXiv 2410.22086)."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearn.rules import Stateless


class Normalised(Stateless):
    """g = Σ weight · ∇term / ‖∇term‖, norms over all trained parameters (2410.22086, the update rule).

    With ascent on the forget set and likelihood on the retain set this is NGDiff,
    g = g_R/‖g_R‖ − g_F/‖g_F‖: a small step never raises the retain loss nor lowers the forget loss, to first
    order. Its norm lies between 0 and 2 for two terms, and is not clipped. A term whose gradient is zero is
    left out; one that is at its minimum at first (a KL to the target) has a gradient of rounding noise there,
    which is scaled up like any other.

    Each term costs one backward pass over its own data (together no more than one pass over all), and one
    further fp32 share of the gradient per term is kept until the step: of the whole model at ZeRO 0, of this
    process's part of it from ZeRO 1 on.
    """

    separate = True
    clipped = False

    def combine(self, gram: Tensor) -> Tensor:
        """1/‖g_t‖ for each term. `gram` [T, T] is of gradients of the terms before their weights."""
        norms = gram.diagonal().clamp(min=0).sqrt()
        return torch.where(norms > 0, 1 / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
