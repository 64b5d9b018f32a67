"""Forget data only loss adjustment, one divergence per batch, as released (arXiv 2410.11143)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt
from torch import Tensor

from unlearn.objectives._divergences import (
    Divergence,
    answer_probability,
    divergence_loss,
    divergence_slopes,
)


def flat_batch(
    logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    alt_logp: Float[Tensor, " M"],
    alt_lengths: Int[Tensor, " B"],
    batch_mean: Float[Tensor, " 2"],
    *,
    divergence: Divergence,
    padded: NonNegativeInt = 0,
) -> Float[Tensor, " B"]:
    """The divergence L of the batch's mean probabilities P̄_e and P̄_f, linear in those of each example.

    L(P̄) + ∂L/∂P̄_e·(P_e − P̄_e) + ∂L/∂P̄_f·(P_f − P̄_f) with constant derivatives. Its average over the batch has
    the value and the gradient of L(P̄), however the batch is split. Source: the authors' code, dataloader.py,
    `ProbLossStable`, with `padded` = 500 on TOFU; there P̄ is of each process's micro-batch.
    """
    template = answer_probability(alt_logp, alt_lengths, padded)
    forget = answer_probability(logp, lengths, padded)
    by_template, by_forget = divergence_slopes(divergence, batch_mean[0], batch_mean[1])
    level = divergence_loss(divergence, batch_mean[0], batch_mean[1])
    return level + by_template * (template - batch_mean[0]) + by_forget * (forget - batch_mean[1])


def batch_mean(
    logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    alt_logp: Float[Tensor, " M"],
    alt_lengths: Int[Tensor, " B"],
    *,
    padded: NonNegativeInt = 0,
) -> Float[Tensor, "B 2"]:
    """Return P_e (template answer) and P_f (answer to forget) of each example, [B, 2]."""
    template = answer_probability(alt_logp, alt_lengths, padded)
    return torch.stack([template, answer_probability(logp, lengths, padded)], dim=-1)
