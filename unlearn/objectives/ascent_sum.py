"""Gradient ascent on whole answers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ascent_sum(
    logp: Float[Tensor, " N"], lengths: Int[Tensor, " B"], weights: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " B"]:
    """Σ w·log p over each answer; without weights the log of the answer's probability.

    Long answers count by their length, as in NPO and in the instance and batch granularity of the authors'
    dataloader_granu.py (arXiv 2505.11953); `ascent` averages over tokens instead.
    """
    return torch.segment_reduce(logp if weights is None else weights * logp, "sum", lengths=lengths)
