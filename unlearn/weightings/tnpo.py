"""Token-wise NPO, plain and weighted (arXiv 2502.19301)."""

from __future__ import annotations

import math

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor


def tnpo(
    logp: Float[Tensor, " N"],
    ref_logp: Float[Tensor, " N"],
    *,
    beta: NonNegativeFloat,
    alpha: NonNegativeFloat = 0.0,
    epsilon: NonNegativeFloat = 1e-5,
) -> Float[Tensor, " N"]:
    """2·p^(β+α) / (p^β + p_ref^β + ε): NPO's implicit weight, for each token instead of each answer.

    TNPO is eq. 6, and `tnpo` of the released dataloader.py, which has this ε. α > 0 is WTNPO, `wtnpo_<α>`
    there (`ins_npo` and `w_ins_npo` in dataloader_ge.py, which measures). The fraction is divided by p^β and
    computed from logarithms, so that ε = 0 and powers below the range of fp32 still give a number. With ε the
    weight of a token that is improbable under the reference too goes to 0, not to 1.
    """
    fixed, reference = logp.detach().float(), ref_logp.detach().float()
    log_epsilon = math.log(epsilon) if epsilon else -math.inf
    rest = (beta * (reference - fixed)).exp() + (
        log_epsilon - beta * fixed
    ).exp()  # may be ∞: the weight is 0
    return 2 * (alpha * fixed).exp() / (1 + rest)
