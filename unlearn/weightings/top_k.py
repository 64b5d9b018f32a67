"""Hard sampling by loss: the hardest tokens (arXiv 2505.11953, Algorithm 1)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unlearn.weightings._rank import ascending, sequence_of
from unlearn.weightings._share import Share


def top_k(
    logp: Float[Tensor, " N"], lengths: Int[Tensor, " B"], *, keep: Share, soft: Share = 1.0
) -> Float[Tensor, " N"]:
    """`soft` for the share `keep` of each sequence's tokens whose loss is largest, 1 − soft for the others.

    `soft` = 1 is hard sampling; the released code has the soft kind only for random selection. Selects max(1,
    round(keep · length)) tokens of each sequence, half to even; of equal tokens the earlier ones. The
    released dataloader_hardsampling.py compares with a quantile of the non-zero losses instead, which keeps
    all or none of equal tokens.

    Raises:
        ValueError: `keep` is not between 0 and 1.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep={keep}: the share of tokens to keep lies between 0 and 1")
    order, rank = ascending(logp.detach().float(), lengths)
    count = (keep * lengths.double()).round().clamp(min=1)
    chosen = rank < count[sequence_of(lengths, len(logp))]
    weights = torch.where(chosen, soft, 1.0 - soft)
    return torch.empty_like(weights).scatter_(0, order, weights)
