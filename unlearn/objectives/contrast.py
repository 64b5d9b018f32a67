"""Distil the contrast of a reinforced model with the reference (Who's Harry Potter, arXiv 2310.02238)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._soft import cross_entropy_to


def contrast(
    logits: Float[Tensor, "N V"],
    ref_logits: Float[Tensor, "N V"],
    reinforced_logits: Float[Tensor, "N V"],
    *,
    alpha: float,
) -> Float[Tensor, " N"]:
    """Cross-entropy to softmax(v_b − α·ReLU(v_r − v_b)): less of what the reinforced model raised.

    v_b are the logits of the reference, v_r of the reinforced model. MUSE (arXiv 2407.06460) decodes from
    this target without training. The original also replaces names in the text, which is left to the data.
    """
    base, reinforced = ref_logits.detach(), reinforced_logits.detach()

    def target(rows: slice) -> Tensor:
        start = base[rows].float()
        return start - alpha * (reinforced[rows].float() - start).relu_()

    return cross_entropy_to(logits, target)
