"""Direct preference optimisation against the answer to forget (arXiv 2305.18290)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(
    logp: Float[Tensor, " N"],
    ref_logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    alt_logp: Float[Tensor, " M"],
    ref_alt_logp: Float[Tensor, " M"],
    alt_lengths: Int[Tensor, " B"],
    *,
    beta: PositiveFloat,
) -> Float[Tensor, " B"]:
    """−(2/β) log σ(β[log(π/π_ref)(alternative) − log(π/π_ref)(answer)]), of whole answers.

    The alternative (a refusal in IdkDPO, sampled from the target in AltPO) is preferred to the answer to
    forget. The factor 2/β makes it comparable with NPO, as in NPO's code and OpenUnlearning; TOFU's code has
    none.
    """
    lost = torch.segment_reduce(logp - ref_logp, "sum", lengths=lengths)
    won = torch.segment_reduce(alt_logp - ref_alt_logp, "sum", lengths=alt_lengths)
    return -2 / beta * logsigmoid(beta * (won - lost))
