"""Forget data only loss adjustment, one divergence per example (arXiv 2410.11143)."""

from __future__ import annotations

from jaxtyping import Float, Int
from pydantic import NonNegativeInt
from torch import Tensor

from unlearn.objectives._divergences import Divergence, answer_probability, divergence_loss


def flat(
    logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    alt_logp: Float[Tensor, " M"],
    alt_lengths: Int[Tensor, " B"],
    *,
    divergence: Divergence,
    padded: NonNegativeInt = 0,
) -> Float[Tensor, " B"]:
    """−g*(P_e) + f*(g*(P_f)) of each example: away from the answer, towards the template answer.

    P is the mean probability of an answer's tokens, as in the paper. The released code divides their sum by
    the padded length (500 on TOFU, 1024 on Harry Potter), which `padded` does. It also averages P over the
    batch before it takes the divergence; see `flat_batch`.
    """
    template = answer_probability(alt_logp, alt_lengths, padded)
    return divergence_loss(divergence, template, answer_probability(logp, lengths, padded))
