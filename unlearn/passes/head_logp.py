"""Log-probabilities of labels from the states that enter an output head: its product and the log-softmax
as one function, whose backward is written out, so that the logits of a large pass never exist whole."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unlearn.passes.products import product
from unlearn.passes.token_logp import block_rows

# Logits in memory at a time. Those of a pass with fewer are kept for its backward; others are computed again,
# piece by piece, which costs a third of the head.
_PIECE = 1 << 26


def head_logp(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return log softmax(hidden · weightᵀ + bias)[label], [N] in fp32.

    `hidden` [N, D], `weight` [V, D] and `bias` [V] are of any one float dtype, in which the logits are too;
    `labels` [N]. First derivatives only.
    """
    return cast(Tensor, _HeadLogp.apply(hidden, weight, bias, labels))


class _HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        picked, top, total = torch.empty(3, len(hidden), 1, device=hidden.device)
        ctx.exponentials = None
        for part in _pieces(len(hidden), len(weight)):
            logits = product("forward", hidden[part], weight, bias)
            in_place = logits.dtype == torch.float32
            for rows in _blocks(logits):
                block, own = logits[rows], slice(part.start + rows.start, part.start + rows.stop)
                # The maximum first: for a likely label log p is far smaller than the logits' rounding.
                top[own] = block.amax(-1, keepdim=True)
                block = block.sub_(top[own]) if in_place else block.float().sub_(top[own])
                picked[own] = block.gather(-1, labels[own, None])
                total[own] = block.exp_().sum(-1, keepdim=True)
            if in_place and len(logits) == len(hidden):
                ctx.exponentials = logits
        ctx.save_for_backward(hidden, weight, bias, labels, top, total)
        return (picked - total.log())[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, labels, top, total = ctx.saved_tensors
        kept, ctx.exponentials = ctx.exponentials, None  # overwritten below
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        by_hidden = torch.empty_like(hidden) if of_hidden else None
        by_weight = by_bias = None
        grad = grads[0][:, None]
        scale = -grad / total
        for part in _pieces(len(hidden), len(weight)):
            logits = product("forward", hidden[part], weight, bias) if kept is None else kept
            for rows in _blocks(logits):
                own = slice(part.start + rows.start, part.start + rows.stop)
                # d log p_y / d z = onehot(y) − softmax(z)
                block = logits[rows]
                if kept is None:
                    block = block.float().sub_(top[own]).exp_()
                block = block.mul_(scale[own]).scatter_add_(-1, labels[own, None], grad[own])
                if block.data_ptr() != logits[rows].data_ptr():
                    logits[rows] = block
            if by_hidden is not None:
                by_hidden[part] = product("input", logits, weight.mT)
            if of_weight:
                by_weight = _summed(by_weight, logits.mT, hidden[part].mT)
            if of_bias:
                by_bias = logits.sum(0) if by_bias is None else by_bias + logits.sum(0)
        return by_hidden, by_weight, by_bias, None


def _summed(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return total + left · rightᵀ, in place from the second piece on."""
    return product("weight", left, right) if total is None else total.addmm_(left, right.mT)


def _pieces(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, _PIECE // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _blocks(logits: Tensor) -> list[slice]:
    size = block_rows(logits)
    return [slice(start, min(start + size, len(logits))) for start in range(0, len(logits), size)]
