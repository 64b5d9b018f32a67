"""Objectives."""

from jaxtyping import Float
from torch import Tensor


def hinge(
    logp: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None = None, *, floor: float = -5.0
) -> Float[Tensor, " N"]:
    """Return how far the log-probability of each answer token is above the floor, times its weight.

    Its gradient is that of gradient ascent, and zero for tokens that are unlikely enough.
    """
    values = (logp - floor).clamp(min=0)
    return values if weights is None else weights * values
