"""Keep answers likelier than refusals (arXiv 2410.08109)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid


def answer_preservation(
    logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    alt_logp: Float[Tensor, " M"],
    alt_lengths: Int[Tensor, " B"],
    *,
    beta: PositiveFloat,
) -> Float[Tensor, " B"]:
    """−(1/β) log σ(β(NLL of the alternative − NLL of the answer)), of whole answers (AP).

    A retain term for training on refusals: it keeps the answer likelier than the refusal. Needs no reference.
    """
    answer = torch.segment_reduce(logp, "sum", lengths=lengths)
    alternative = torch.segment_reduce(alt_logp, "sum", lengths=alt_lengths)
    return -1 / beta * logsigmoid(beta * (answer - alternative))
