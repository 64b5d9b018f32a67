"""The random direction that hidden states are moved towards."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A seed that PyTorch's generators take."""


def random_direction(like: Float[Tensor, "N D"], seed: int, *, unit: bool) -> Float[Tensor, " D"]:
    """Draw a direction [D], uniform in [0, 1), normalised if `unit`.

    fp32, on the device of `like`; the numbers are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(like.shape[-1], generator=generator)
    return (drawn / drawn.norm() if unit else drawn).to(like.device)
