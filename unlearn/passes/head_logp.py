"""Log-probabilities of labels from the states that enter an output head: its product and the log-softmax
as one function, whose backward is written out, so that the logits of a large pass never exist whole."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unlearn.passes.products import product
from unlearn.passes.token_logp import block_rows

# Logits in memory at a time. Those of a pass with fewer in fp32 are kept for its backward; others are
# computed again, piece by piece, which costs a third of the head.
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
        grad = grads[0][:, None]
        scale = -grad / total
        pieces = _pieces(len(hidden), len(weight))
        # Several pieces are summed in fp32, so that their number does not matter; none are zero.
        wide = torch.promote_types(weight.dtype, torch.float32) if len(pieces) > 1 else weight.dtype
        by_weight = torch.zeros_like(weight, dtype=wide) if of_weight and len(pieces) != 1 else None
        by_bias = torch.zeros_like(bias, dtype=wide) if of_bias else None
        for part in pieces:
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
                share = product("weight", logits.mT, hidden[part].mT)
                by_weight = share if by_weight is None else by_weight.add_(share)
            if by_bias is not None:
                by_bias += logits.sum(0)
        return by_hidden, _like(by_weight, weight), _like(by_bias, bias), None


def _like(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
    return None if grad is None else grad.to(parameter.dtype)


def _pieces(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, _PIECE // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _blocks(logits: Tensor) -> list[slice]:
    size = block_rows(logits)
    return [slice(start, min(start + size, len(logits))) for start in range(0, len(logits), size)]
