"""Large fp32 matrix products on CPUs by oneDNN: on some CPUs twice as fast as PyTorch's choice."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

LINEAR = torch._C._nn.linear  # the original of functional.linear, which ZeRO 3 replaces

# Multiplications below which setting up oneDNN for a new shape costs more than it saves.
_LEAST = 1 << 23


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return rows [..., I] · weight [O, I]ᵀ + bias, without gradients by weight and bias."""
    if not _suits(rows, weight):
        return LINEAR(rows, weight, bias)
    if torch.is_grad_enabled():
        return cast(Tensor, _Linear.apply(rows, weight, bias))
    return _product(rows, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grads[0], weight.mT) if ctx.needs_input_grad[0] else None, None, None


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows.contiguous(), weight, bias, "none", [], ""))


def _suits(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dtype == weight.dtype == torch.float32
        and rows.numel() * weight.shape[0] >= _LEAST
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
