"""Importance (arXiv 2505.11953)."""

from __future__ import annotations

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor


def simimp(logp: Float[Tensor, " N"], *, beta: NonNegativeFloat) -> Float[Tensor, " N"]:
    """(1 − p)^β: smaller for tokens that the model is certain of, function words above all.

    SimImp of the authors' dataloader_sat.py. Unlike saturation it does not bound the gradient as p → 0. The
    authors compute 1 − p as a difference; −expm1(log p), used here, does not cancel at p → 1.
    """
    return (-logp.detach().float().expm1()).pow(beta)
