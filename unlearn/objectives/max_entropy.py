"""Make answers uniform (arXiv 2410.08109)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._soft import rowwise


def max_entropy(logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(uniform ‖ p) at each position, 0 where all tokens are equally likely (ME).

    The released code adds 1e-12 to p, which bounds it at log p = −27.6; here it is exact. That code's ME+GD
    averages over prompt and padding as well (the term's `mask`).
    """
    return rowwise(logits, _from_uniform)


def _from_uniform(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    z = z - z.amax(-1, keepdim=True)
    mean = z.mean(-1)
    p = z.exp_()
    total = p.sum(-1, keepdim=True)
    size = p.shape[-1]
    return total.log()[:, 0] - mean - math.log(size), p.div_(total).sub_(1 / size)
