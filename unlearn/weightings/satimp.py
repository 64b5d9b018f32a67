"""Saturation times importance (arXiv 2505.11953)."""

from __future__ import annotations

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from unlearn.weightings.simimp import simimp
from unlearn.weightings.simsat import simsat


def satimp(
    logp: Float[Tensor, " N"], *, beta1: NonNegativeFloat, beta2: NonNegativeFloat
) -> Float[Tensor, " N"]:
    """p^β1 · (1 − p)^β2: smaller for tokens already forgotten (β1) and for those still certain (β2).

    Largest at p = β1/(β1 + β2). β2 = 0 is SimSat and WGA, β1 = 0 SimImp. Source: the authors' code,
    dataloader_sat.py, `satimp`.
    """
    return simsat(logp, beta=beta1) * simimp(logp, beta=beta2)
