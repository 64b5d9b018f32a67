"""Gradient ascent."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def ascent(logp: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None = None) -> Float[Tensor, " N"]:
    """log p of each answer token, times its weight; minimising it unlearns.

    Without weights it has no lower bound (arXiv 2401.06121, §4, GA). WGA, TNPO, SimSat, SimImp and SatImp are
    this objective with a weighting of that name (WGA: simsat).
    """
    return logp if weights is None else weights * logp
