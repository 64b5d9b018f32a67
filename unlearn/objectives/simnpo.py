"""NPO without a reference model (arXiv 2410.07163)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid


def simnpo(
    logp: Float[Tensor, " N"], lengths: Int[Tensor, " B"], *, beta: PositiveFloat, delta: float
) -> Float[Tensor, " B"]:
    """−(2/β) log σ(β(s − δ)) of each answer, s its mean loss per token in nats.

    The margin δ (γ in the released code) is multiplied by β, as there and in OpenUnlearning; the paper writes
    βs − γ, so its γ is βδ here. With δ = 0 this is NPO on the mean log-probability, against a reference that
    is certain of the answer.
    """
    loss = -torch.segment_reduce(logp, "sum", lengths=lengths) / lengths.clamp(min=1)
    return -2 / beta * logsigmoid(beta * (loss - delta))
