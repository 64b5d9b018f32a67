"""Negative preference optimisation (arXiv 2404.05868)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid


def npo(
    logp: Float[Tensor, " N"],
    ref_logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    weights: Float[Tensor, " N"] | None = None,
    *,
    beta: PositiveFloat,
    per_token: bool = False,
) -> Float[Tensor, " B"]:
    """−(2/β) log σ(−β log(π/π_ref)) of each answer, π the probability of the whole answer (eq. 3).

    Falls as the answer becomes less likely than under the reference, and its gradient vanishes from there on:
    it is that of ascent times 2π^β/(π^β + π_ref^β). β → 0 is ascent on the summed log-probability.

    Weights multiply each token's log-ratio before the sum (arXiv 2505.11953, hard sampling and annotation).
    The code released there sums the log-ratio over the whole batch; here each answer has its own.

    `per_token` divides the log-ratio by the answer's length, as the code of arXiv 2410.07163 does on WMDP,
    where the two losses are means.
    """
    ratio = logp - ref_logp
    ratio = torch.segment_reduce(ratio if weights is None else weights * ratio, "sum", lengths=lengths)
    if per_token:
        ratio = ratio / lengths.clamp(min=1)
    return -2 / beta * logsigmoid(-beta * ratio)
