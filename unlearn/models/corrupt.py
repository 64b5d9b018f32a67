"""Damage a model's weights by shrinking and noise, so that it can be trained to what is left (UNDO)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from unlearn.models import stored


def corrupted(value: Tensor, name: str, *, alpha: float, beta: float, seed: int) -> Tensor:
    """Return (1 − α)·W + α·β·N in fp32, with N Xavier-uniform (UNDO, arXiv 2506.06278, and its code).

    Of a matrix. Norms and biases, which have one dimension, only shrink. The noise depends on seed and name
    alone, so that it is the same on every process and device.
    """
    shrunk = value.to("cpu", torch.float32) * (1 - alpha)
    if value.ndim < 2 or alpha * beta == 0:
        return shrunk
    own = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(own[:8], "little", signed=True))
    noise = nn.init.xavier_uniform_(torch.empty(value.shape), generator=draws)
    return shrunk.add_(noise, alpha=alpha * beta)


@torch.no_grad()
def corrupt(model: nn.Module, *, alpha: float, beta: float, seed: int) -> None:
    """Corrupt all weights of a model, also of one whose values `unlearn.models.stored` set aside.

    A weight that two modules share is corrupted once. With α = 0 nothing is changed.
    """
    if alpha == 0:
        return
    values = {
        name: parameter.data if (value := stored.stored(parameter)) is None else value
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }
    for name, value in values.items():
        stored.replace(model, {name: corrupted(value, name, alpha=alpha, beta=beta, seed=seed)})
