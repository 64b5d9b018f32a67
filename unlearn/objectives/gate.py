"""Train gates to open on forget prompts (arXiv 2502.17823)."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def gate(gate: Float[Tensor, "B K"], *, label: Annotated[float, Field(ge=0, le=1)]) -> Float[Tensor, " B"]:
    """Binary cross-entropy of the gates to `label`, averaged over the K edits (GRUN).

    `label` is 1 on forget prompts, 0 on retain prompts. The authors' code averages over the gates of all
    layers and of both sets at once, so that either set counts half of its `gate_weight`.
    """
    logits = gate.float()
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none").mean(-1)
