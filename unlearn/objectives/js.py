"""Keep the reference's distribution, by a bounded divergence (arXiv 2509.02820)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._soft import Target, plain, rowwise


def js(logits: Float[Tensor, "N V"], ref_logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Jensen–Shannon divergence of the reference and the model at each position, from 0 to ln 2.

    ½ KL(q ‖ m) + ½ KL(p ‖ m) with m = (p + q)/2: the retain term of JensUn. Exactly 0 for equal rows.
    """
    target = plain(ref_logits)
    return rowwise(logits, lambda z, rows: _divergence(z, target, rows))


def _divergence(z: Tensor, target: Target, rows: slice) -> tuple[Tensor, Tensor]:
    log_p, log_q = z.log_softmax(-1), target(rows).log_softmax(-1)
    apart = log_q - log_p
    # ln(m/p) = ln((1 + q/p)/2), from whichever of p and q is larger: no ratio overflows.
    common = apart.abs().neg_().expm1_().div_(2).log1p_()
    of_model = common + apart.relu()
    p, q = log_p.exp_(), log_q.exp_()
    cost = torch.linalg.vecdot(p, of_model) + torch.linalg.vecdot(q, common.add_(apart.neg_().relu_()))
    slope = of_model.mul_(p)
    return cost / -2, slope.sub_(p.mul_(slope.sum(-1, keepdim=True))).div_(-2)
