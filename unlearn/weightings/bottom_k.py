"""Hard sampling by loss: the easiest tokens (arXiv 2505.11953, Algorithm 1)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from unlearn.weightings._share import Share
from unlearn.weightings.top_k import top_k


def bottom_k(
    logp: Float[Tensor, " N"], lengths: Int[Tensor, " B"], *, keep: Share, soft: Share = 1.0
) -> Float[Tensor, " N"]:
    """`soft` for the share `keep` of each sequence's tokens whose loss is smallest, 1 − soft for the others.

    Counts and ties are as in `top_k`. The k of the released dataloader_hardsampling.py is the share that is
    left out: its k = 0.3 is keep = 0.7 here.
    """
    return top_k(-logp, lengths, keep=keep, soft=soft)
