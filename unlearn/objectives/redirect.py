"""Move prompts to forget towards those that the model refuses (arXiv 2502.07218, LUNAR)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def redirect(
    hidden: Float[Tensor, "N D"],
    ref_hidden: Float[Tensor, "N D"],
    direction: Float[Tensor, " D"],
    *,
    coefficient: float,
) -> Float[Tensor, " N"]:
    """Mean squared difference of the hidden state from h_ref + c·d at each position.

    d leads from the prompts to forget to prompts that the model refuses (`direction`). Where one
    down-projection is trained (`method.train`), this and the retain term are a least-squares problem.
    """
    target = ref_hidden.detach().float() + coefficient * direction.detach().float()
    return (hidden.float() - target).square().mean(-1)
