"""Linear layers by oneDNN for passes without gradients: on some CPUs twice as fast as PyTorch's default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.mkldnn import MkldnnLinear

# Packed weights are a second copy; above this many elements (2 GiB) memory matters more.
_LIMIT = 1 << 29

Packed: TypeAlias = dict[nn.Module, Callable[..., Any]]


def pack(model: nn.Module) -> Packed:
    """Return the forwards of the model's plain linear layers with packed weights.

    Empty where the model is not on a CPU in fp32, is sharded, or is large.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    weights = [layer.weight for layer in layers]
    fits = sum(weight.numel() for weight in weights) <= _LIMIT and all(
        weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.dim() == 2
        for weight in weights
    )
    if not fits or not torch.backends.mkldnn.is_available():
        return {}
    with torch.no_grad():
        return {layer: MkldnnLinear(layer, torch.float).forward for layer in layers}


@contextmanager
def packed_in(packed: Packed) -> Iterator[None]:
    """Use the packed forwards within the context; hooks of the layers still run."""
    for layer, forward in packed.items():
        layer.forward = forward
    try:
        yield
    finally:
        for layer in packed:
            del layer.forward
