"""Inverted hinge loss of LoKU (arXiv 2408.06621)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from unlearn.objectives._soft import rowwise


def ihl(logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """max(0, 1 + p_y − max_{v≠y} p_v) of each answer token y: lower it, and raise its strongest rival alone.

    Between 0 and 2, and 1 where both are equally likely. The gradient fades as the rival becomes certain.
    """
    return rowwise(logits, lambda z, rows: _hinge(z, labels[rows, None]))


def _hinge(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    p = z.softmax(-1)
    own = p.gather(-1, label)
    rival, where = p.scatter(-1, label, -1.0).max(-1, keepdim=True)
    values = (1 + own - rival).clamp_(min=0)[:, 0]
    slope = p.mul_(rival - own)
    return values, slope.scatter_add_(-1, label, own).scatter_add_(-1, where, -rival)
