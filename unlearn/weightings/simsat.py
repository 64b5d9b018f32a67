"""Saturation (arXiv 2505.11953), which is also the weight of WGA (arXiv 2502.19301)."""

from __future__ import annotations

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor


def simsat(logp: Float[Tensor, " N"], *, beta: NonNegativeFloat) -> Float[Tensor, " N"]:
    """p^β: smaller for tokens already forgotten.

    SimSat of the authors' dataloader_sat.py; WGA, eq. 2 of arXiv 2502.19301. The released `simsat_ga` ignores
    the exponent (β is always 1); here β is used.
    """
    return (beta * logp.detach().float()).exp()
