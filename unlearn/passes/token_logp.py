"""Log-probabilities of labels from logits, in blocks that bound the memory of a pass and of its backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of one fp32 block of logits: bounds the extra memory of log-softmax and its backward.
_BLOCK = 1 << 24
_CPU_BLOCK = 1 << 19  # small enough to stay in a core's cache from one operation to the next


def token_logp(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log softmax(logits)[label], [N] in fp32 from [N, V] of any float dtype.

    Keeps the logits and two numbers per row for the backward pass, instead of a second [N, V] in fp32.
    """
    return _TokenLogp.apply(logits, labels)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        # Allocated first: small results between blocks that are freed again would fragment the memory.
        picked, top, total = torch.empty(3, len(logits), 1, device=logits.device)
        done = 0
        for rows, wanted in blocks(logits, labels):
            part = slice(done, done := done + len(rows))
            # Subtract the maximum first: for a likely label log p is far smaller than the logits' rounding.
            top[part] = rows.amax(-1, keepdim=True)
            block = rows.float() - top[part]
            picked[part] = block.gather(-1, wanted[:, None])
            total[part] = block.exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(logits, labels, top, total)
        return (picked - total.log())[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, top, total = ctx.saved_tensors
        grad = grads[0][:, None]
        scale = -grad / total
        out = torch.empty_like(logits)
        done = 0
        for rows, wanted in blocks(logits, labels):
            part = slice(done, done := done + len(rows))
            # d log p_y / d z = onehot(y) − softmax(z)
            block = (rows.float() - top[part]).exp_().mul_(scale[part])
            block.scatter_add_(-1, wanted[:, None], grad[part])
            out[part] = block
        return out, None


def blocks(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of logits [n, V] with their labels [n], a block at a time."""
    size = block_rows(logits)
    return zip(logits.split(size), labels.split(size), strict=True)


def block_rows(logits: Tensor) -> int:
    """Return how many rows of logits [N, V] a block has."""
    size = min(_BLOCK, _CPU_BLOCK) if logits.device.type == "cpu" else _BLOCK
    return max(1, size // logits.shape[-1])
