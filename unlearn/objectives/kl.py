"""Keep the reference's distribution."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._soft import soft_kl


def kl(logits: Float[Tensor, "N V"], ref_logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """KL(reference ‖ model) at each position (arXiv 2401.06121, §4, KL minimisation).

    TOFU's code and its successors average over every position, prompt and padding included; the term's `mask`
    selects the positions.
    """
    return soft_kl(logits, ref_logits)
