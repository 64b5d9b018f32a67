"""Random sampling of tokens, hard or soft (arXiv 2505.11953, Algorithm 1)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from unlearn.weightings._share import Share
from unlearn.weightings.top_k import top_k


def random_k(
    noise: Float[Tensor, " N"], lengths: Int[Tensor, " B"], *, keep: Share, soft: Share = 1.0
) -> Float[Tensor, " N"]:
    """`soft` for a random share `keep` of each sequence's tokens, 1 − soft for the others; 1 is hard.

    Selects the tokens of the smallest noise, counted as in `top_k`. The mask of the released code is of
    integers, so that any soft between 0 and 1 gives a loss of zero there.
    """
    return top_k(noise, lengths, keep=keep, soft=soft)
