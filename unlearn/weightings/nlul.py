"""Negative log-unlikelihood (arXiv 2504.13388)."""

from __future__ import annotations

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from unlearn.weightings._share import Share


def nlul(
    logp: Float[Tensor, " N"], *, threshold: Share = 0.0, tolerance: NonNegativeFloat = 1e-6
) -> Float[Tensor, " N"]:
    """p / (1 + tolerance − p), and 0 where p < threshold.

    With `ascent` it has the gradient of −log(1 − p), which is p on the gold logit: tokens that the model
    knows best move most, where plain ascent has no gradient. The tolerance keeps the weight finite at p = 1
    and multiplies the gradient by (1 − p)/(1 − p + tolerance). Source: the released losses, which supervise
    the whole sequence (here only of plain texts) and compute 1 − p as a difference.
    """
    fixed = logp.detach().float()
    prob = fixed.exp()
    return prob.where(prob >= threshold, 0.0) / (tolerance - fixed.expm1())
