"""Kahneman-Tversky optimisation with the answer to forget as undesirable (arXiv 2402.01306)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid


def kto(
    logp: Float[Tensor, " N"],
    ref_logp: Float[Tensor, " N"],
    lengths: Int[Tensor, " B"],
    batch_mean: Float[Tensor, " 1"],
    *,
    beta: PositiveFloat,
    form: Literal["sigmoid", "logsigmoid"] = "sigmoid",
    scale_mean: bool = False,
) -> Float[Tensor, " B"]:
    """1 − (2/β) σ(K − β log(π/π_ref)) of each whole answer; `form=logsigmoid` replaces σ by log σ.

    K is the batch's mean log-ratio of the alternative answers. KTO defines σ(β(K − log-ratio)). This follows
    NPO's code (TOFU/dataloader.py, `kto_sigmoid`, `kto_logsigmoid`), which neither scales K nor cuts it off
    at 0; `scale_mean` multiplies K by β, as defined. That code averages K over each process's micro-batch;
    here the average is over the global batch.

    Raises:
        ValueError: `form` has another name.
    """
    mean = batch_mean[0] * beta if scale_mean else batch_mean[0]
    margin = mean - beta * torch.segment_reduce(logp - ref_logp, "sum", lengths=lengths)
    match form:
        case "sigmoid":
            return 1 - 2 / beta * margin.sigmoid()
        case "logsigmoid":
            return 1 - 2 / beta * logsigmoid(margin)
    raise ValueError(f"form={form}: no such form of kto (known: sigmoid, logsigmoid)")


def batch_mean(
    alt_logp: Float[Tensor, " M"], ref_alt_logp: Float[Tensor, " M"], alt_lengths: Int[Tensor, " B"]
) -> Float[Tensor, "B 1"]:
    """Return log(π/π_ref) of each whole alternative answer, [B, 1]."""
    return torch.segment_reduce(alt_logp - ref_alt_logp, "sum", lengths=alt_lengths)[:, None]
