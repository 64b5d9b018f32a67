"""Negative log-likelihood."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def nll(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """−log p of each answer token: learns the answer, or keeps it (the retain term of GradDiff)."""
    return -logp
