"""Representation rerouting of circuit breakers (arXiv 2406.04313)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity


def reroute(hidden: Float[Tensor, "N D"], ref_hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """ReLU(cos(h, h_ref)) at each position: 1 at the start, 0 from a right angle on.

    The gradient is zero where both are equal, as they are at the start: there rounding decides the first
    steps of AdamW, which divides by its size.
    """
    return cosine_similarity(hidden.float(), ref_hidden.detach().float(), dim=-1).relu()
