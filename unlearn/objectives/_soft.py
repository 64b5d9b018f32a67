"""Functions of whole rows of logits, with a derivative by hand instead of autograd.

Everything runs in fp32 on blocks of rows, whatever the dtype of the logits. The derivative is computed in the
same pass, while a block is in cache. It is all that is kept for the backward pass: one [N, V] in the logits'
dtype, and neither the target nor a second [N, V] in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Target = Callable[[slice], Tensor]
"""Returns target logits [n, V] in fp32 of some consecutive rows, to be read and not written."""

# Elements of one fp32 block: limits the memory besides the kept derivative.
_BLOCK = 1 << 24
_CPU_BLOCK = 1 << 17  # the three or four in use stay in a core's cache from one operation to the next


def soft_cross_entropy(
    logits: Float[Tensor, "N V"], target_logits: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """Return −Σ softmax(target)·log softmax(logits) of each row, fp32; the target has no gradient."""
    return cross_entropy_to(logits, plain(target_logits))


def soft_kl(logits: Float[Tensor, "N V"], target_logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """Return KL(softmax(target) ‖ softmax(logits)) of each row, fp32; the target has no gradient.

    Computed from differences of logits, so that it is exactly 0 for equal rows.
    """
    target = plain(target_logits)
    return rowwise(logits, lambda z, rows: _kl(z, target(rows)))


def cross_entropy_to(logits: Float[Tensor, "N V"], target: Target) -> Float[Tensor, " N"]:
    """Return `soft_cross_entropy` with target logits computed block by block; −inf excludes a token."""
    return rowwise(logits, lambda z, rows: _cross_entropy(z, target(rows)))


def plain(target_logits: Float[Tensor, "N V"]) -> Target:
    """Return a target of the logits as they are."""
    fixed = target_logits.detach()
    return lambda rows: fixed[rows].float()


def shifted(target_logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], by: float) -> Target:
    """Return a target of the logits with `by` added at each row's label."""
    fixed = target_logits.detach()

    def block(rows: slice) -> Tensor:
        own = fixed[rows].to(torch.float32, copy=True)
        where = labels[rows, None]
        return own.scatter_(-1, where, own.gather(-1, where) + by)

    return block


def rowwise(
    logits: Float[Tensor, "N V"], function: Callable[[Tensor, slice], tuple[Tensor, Tensor]]
) -> Float[Tensor, " N"]:
    """Apply a function to each row, in fp32, differentiable once.

    The function gets a block [n, V] in fp32, which it must not write to, and the block's place in N. It
    returns the values [n] and their derivative [n, V].
    """
    wanted = logits.requires_grad and torch.is_grad_enabled()
    values: Tensor = _Rowwise.apply(logits, function, wanted)
    return values


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, function: Callable[[Tensor, slice], tuple[Tensor, Tensor]], wanted: bool
    ) -> Tensor:
        values = logits.new_empty(len(logits), dtype=torch.float32)
        slope = torch.empty_like(logits) if wanted else None
        for rows in _blocks(logits):
            values[rows], derivative = function(logits[rows].float(), rows)
            if slope is not None:
                slope[rows] = derivative
        ctx.save_for_backward(slope)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        out = torch.empty_like(slope)  # not in place: there may be a second backward pass
        for rows in _blocks(slope):
            out[rows] = slope[rows] * grads[0][rows, None]
        return out, None, None


def _cross_entropy(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    q = t.softmax(-1)
    # Subtract the maximum first: where the model is certain, log p is far below the rounding of the logits.
    z = z - z.amax(-1, keepdim=True)
    cost = -torch.linalg.vecdot(q, z)
    p = z.exp_()
    total = p.sum(-1, keepdim=True)
    return cost + total.log()[:, 0], p.div_(total).sub_(q)


def _kl(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    z, t = z - z.amax(-1, keepdim=True), t - t.amax(-1, keepdim=True)
    q = t.exp()
    target_total = q.sum(-1, keepdim=True)
    q.div_(target_total)
    cost = torch.linalg.vecdot(q, t.sub_(z))
    p = z.exp_()
    total = p.sum(-1, keepdim=True)
    return cost + (total.log() - target_total.log())[:, 0], p.div_(total).sub_(q)


def _blocks(logits: Tensor) -> list[slice]:
    size = max(1, (_CPU_BLOCK if logits.device.type == "cpu" else _BLOCK) // max(1, logits.shape[-1]))
    return [slice(start, start + size) for start in range(0, len(logits), size)]
