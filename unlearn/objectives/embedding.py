"""Keep the reference's hidden states (arXiv 2403.03218)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def embedding(hidden: Float[Tensor, "N D"], ref_hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Mean squared difference of the hidden state at each position, fp32: the retain term of RMU."""
    return (hidden.float() - ref_hidden.detach().float()).square().mean(-1)
