"""Matrix products of linear layers; on a CPU in fp32 by the faster one of two kernels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unlearn.passes.product_times import Kind, Size, onednn, preferred, prefers_onednn

log = logging.getLogger(__name__)

LINEAR = torch._C._nn.linear  # the original of functional.linear, which ZeRO 3 replaces

# Multiplications below which setting up oneDNN for a new shape costs more than it saves.
_LEAST = 1 << 23


@contextmanager
def fast_linear_layers(model: nn.Module) -> Iterator[None]:
    """Let the model's plain linear layers use the faster kernels in this block; hooks of layers still run.

    Layers for which PyTorch's own kernels are the faster ones stay as they are, and so do those on a GPU, in
    another precision or sharded by ZeRO 3. A layer that has its own forward keeps it. Within the block the
    layers have first derivatives only.
    """
    layers = {layer: _sizes(layer) for layer in model.modules() if type(layer) is nn.Linear}
    faster = preferred(size for sizes in layers.values() for size in sizes)
    changed = [layer for layer, sizes in layers.items() if faster.intersection(sizes)]
    if changed:
        log.debug("oneDNN computes products of %d of %d linear layers", len(changed), len(layers))
    for layer in changed:
        layer.__dict__["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]


@contextmanager
def plain_linear_layers(model: nn.Module) -> Iterator[None]:
    """Undo `fast_linear_layers` in this block: every product is a call of `LINEAR` again."""
    changed = [(layer, layer.__dict__["forward"]) for layer in model.modules() if _is_changed(layer)]
    for layer, _ in changed:
        del layer.__dict__["forward"]
    try:
        yield
    finally:
        for layer, forward in changed:
            layer.__dict__["forward"] = forward


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, trained: bool = False) -> Tensor:
    """Return rows [..., I] · weight [O, I]ᵀ + bias; unless `trained`, without gradients by these two."""
    if not _suits(rows, weight):
        return LINEAR(rows, weight, bias)
    if torch.is_grad_enabled():
        return cast(Tensor, _Linear.apply(rows, weight, bias, trained))
    return product("forward", rows, weight, bias)


def product(kind: Kind, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left [..., K] · right [M, K]ᵀ + bias by the faster kernel for this product of a linear layer.

    `kind` says which of the layer's products it is. No gradients.
    """
    if _suits(left, right) and prefers_onednn(_size(kind, left, right)):
        return onednn(left if kind == "weight" else left.contiguous(), right, bias)
    return LINEAR(left, right, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, trained: bool) -> Tensor:
        learns = trained and ctx.needs_input_grad[1]
        ctx.save_for_backward(weight, rows if learns else None)
        ctx.learns, ctx.trained = learns, trained
        return product("forward", rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, rows = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        by_rows = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_rows = product("input", grad, weight.mT).unflatten(0, grads[0].shape[:-1])
        if ctx.learns:
            by_weight = product("weight", grad.mT, rows.flatten(0, -2).mT)
        if ctx.trained and ctx.needs_input_grad[2]:
            by_bias = grad.sum(0)
        return by_rows, by_weight, by_bias, None


def _forward(layer: nn.Linear, rows: Tensor) -> Tensor:
    return linear(rows, layer.weight, layer.bias, trained=True)


def _is_changed(layer: nn.Module) -> bool:
    forward = layer.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _forward


def _sizes(layer: nn.Linear) -> list[Size]:
    """Return the sizes of the layer's products, over few rows and many, for which there is a choice."""
    weight = layer.weight
    if "forward" in layer.__dict__ or hasattr(weight, "ds_id") or weight.dim() != 2:
        return []
    wanted: list[tuple[Kind, int]] = [("forward", 16), ("forward", 1024)]
    if weight.requires_grad:
        wanted += [("input", 1024), ("weight", 1024)]
    outputs, inputs = weight.shape
    return [
        Size.of(kind, rows, inputs, outputs)
        for kind, rows in wanted
        if _suits(weight.new_empty(1).expand(rows, inputs), weight)
    ]


def _suits(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dim() > 1
        and rows.dtype == weight.dtype == torch.float32
        and rows.numel() * weight.shape[0] >= _LEAST
        and torch.backends.mkldnn.is_available()
    )


def _size(kind: Kind, left: Tensor, right: Tensor) -> Size:
    rows = left.numel() // left.shape[-1]
    if kind == "forward":
        return Size.of(kind, rows, left.shape[-1], right.shape[0])
    if kind == "input":
        return Size.of(kind, rows, right.shape[0], left.shape[-1])
    return Size.of(kind, left.shape[-1], right.shape[0], rows)
