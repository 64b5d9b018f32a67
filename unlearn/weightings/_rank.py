"""Ranks within the sequences of a flat batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_of(lengths: Tensor, total: int) -> Tensor:
    """Return the sequence [N] that each of the `total` tokens belongs to."""
    index = torch.arange(len(lengths), device=lengths.device)
    return index.repeat_interleave(
        lengths, output_size=total
    )  # the size avoids a synchronisation with the device


def ascending(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order [N] that sorts values within each sequence, and the rank [N] of each place in it.

    Ranks count from zero in each sequence. Equal values keep their order.
    """
    owner = sequence_of(lengths, len(values))
    order = values.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]
    starts = lengths.cumsum(0) - lengths
    return order, torch.arange(len(values), device=values.device) - starts[owner]
