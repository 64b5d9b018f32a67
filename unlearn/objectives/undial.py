"""Self-distillation from a teacher with a lower logit of the answer token (arXiv 2402.10052)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from unlearn.objectives._soft import cross_entropy_to, shifted


def undial(
    logits: Float[Tensor, "N V"],
    ref_logits: Float[Tensor, "N V"],
    labels: Int[Tensor, " N"],
    *,
    beta: float,
) -> Float[Tensor, " N"]:
    """Cross-entropy to softmax(z_ref − β·onehot(y)), y the answer token.

    OpenUnlearning also averages over prompt and padding, and uses their label −100 as a token.
    """
    return cross_entropy_to(logits, shifted(ref_logits, labels, -beta))
