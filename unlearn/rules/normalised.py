"""The normalised gradient difference of NGDiff (arXiv 2410.22086)."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearn.rules import Stateless


class Normalised(Stateless):
    """g = Σ weight · ∇term / ‖∇term‖, norms over all trained parameters (2410.22086, the update rule).

    With ascent on the forget set and likelihood on the retain set this is NGDiff, g = g_R/‖g_R‖ − g_F/‖g_F‖:
    to first order, a small step neither raises the retain loss nor lowers the forget loss. Its norm is
    between 0 and 2 for two terms, and is not clipped. A term with a gradient of zero is left out. A term that
    starts at its minimum (a KL to the target) has a gradient of rounding noise there, which is scaled up like
    any other.

    Each term costs one backward pass over its own data (together no more than one pass over all data). Until
    the step, one more fp32 gradient per term is kept: of the whole model at ZeRO 0, of this process's
    partition from ZeRO 1 on.
    """

    separate = True
    clipped = False

    def combine(self, gram: Tensor) -> Tensor:
        """Return 1/‖g_t‖ for each term, [T]. `gram` [T, T] is of gradients before the terms' weights."""
        norms = gram.diagonal().clamp(min=0).sqrt()
        return torch.where(norms > 0, 1 / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
