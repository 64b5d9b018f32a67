"""Keep the reference's hidden states (arXiv 2403.03218, 2406.04313)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def embedding(
    hidden: Float[Tensor, "N D"],
    ref_hidden: Float[Tensor, "N D"],
    *,
    form: Literal["squares", "norm"] = "squares",
) -> Float[Tensor, " N"]:
    """Mean squared difference of the hidden state at each position, fp32: the retain term of RMU.

    - `form`: `squares`, or `norm`, the length ‖h − h_ref‖₂ of the difference: the retain term of circuit
      breakers. Its gradient is zero where both are equal.

    Raises:
        ValueError: `form` has another name.
    """
    if form not in ("squares", "norm"):
        raise ValueError(f"form={form}: no such form of embedding (known: squares, norm)")
    difference = hidden.float() - ref_hidden.detach().float()
    return difference.square().mean(-1) if form == "squares" else torch.linalg.vector_norm(difference, dim=-1)
