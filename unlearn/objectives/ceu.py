"""Cross-entropy unlearning (arXiv 2503.01224)."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor

from unlearn.objectives._soft import cross_entropy_to, shifted


def ceu(logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Cross-entropy to the model's own distribution without the answer token y, which has no gradient.

    The gradient in the logits is p − q with q = softmax(z, z_y = −∞): p_y is distributed over the other
    tokens in proportion. OpenUnlearning leaves out the first answer token (the term's `skip: 1`).
    """
    return cross_entropy_to(logits, shifted(logits, labels, -math.inf))
