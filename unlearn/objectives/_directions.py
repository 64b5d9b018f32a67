"""The random direction that hidden states are moved towards."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def random_direction(like: Float[Tensor, "N D"], seed: int, *, unit: bool) -> Float[Tensor, " D"]:
    """Draw a direction [D], uniform in [0, 1), normalised if `unit`.

    fp32, on the device of `like`; the numbers are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(like.shape[-1], generator=generator)
    return (drawn / drawn.norm() if unit else drawn).to(like.device)
