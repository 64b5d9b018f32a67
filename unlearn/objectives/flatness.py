"""Make logits flat (arXiv 2506.05314)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._soft import rowwise


def flatness(logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """(max z − mean z)² at each position, the forget term of PDU.

    OpenUnlearning applies the labels' mask unshifted: it flattens the logits after each answer token, and not
    those that predict the first one.
    """
    return rowwise(logits, _spread)


def _spread(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    top, where = z.max(-1, keepdim=True)
    spread = top - z.mean(-1, keepdim=True)
    slope = (-2 / z.shape[-1] * spread).repeat(1, z.shape[-1])
    return spread.square()[:, 0], slope.scatter_add_(-1, where, 2 * spread)
