"""Norms of the gradients of single examples, for the gradient-norm membership attack.

One forward and one backward serve a whole batch: see `unlearn.passes.per_example.capture`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from unlearn.data.batching import Batch
from unlearn.passes.per_example.capture import alone, captured
from unlearn.passes.per_example.parameter_uses import Outer, Own, Site

# Elements held for one parameter at a time, beside what the pass itself keeps.
_BUDGET = 1 << 23


def gradient_norms(model: nn.Module, batch: Batch) -> Tensor:
    """[B], fp32: the mean over the trained parameter tensors of the norm of an example's gradient.

    The gradient is that of the mean negative log-likelihood of the example's answer tokens; a tensor that is
    used in several places counts once (OpenUnlearning's GradNorm with p = 2). The model has to be in eval
    mode; its gradients and flags stay as they are, so that it may be in the middle of a training step.
    Under ZeRO 3 every call is a collective.

    Raises:
        ValueError: the model is in training mode, or nothing of it is trained.
        NotImplementedError: ZeRO 3 partitions a parameter that is used outside of the modules' own calls.
    """
    if model.training:
        raise ValueError("gradient_norms is of a model in eval mode: call model.eval() before")
    tensors = sum(p.requires_grad for p in model.parameters())
    if not tensors:
        raise ValueError("gradient_norms: no parameter of the model has requires_grad")
    found = captured(model, batch)
    total = torch.zeros(len(batch.lengths), dtype=torch.float64, device=batch.lengths.device)
    for sites in found.sites:
        total += _norms(sites, len(batch.lengths))
    if found.missed:
        total += _alone(model, batch, found.missed)
    return (total / tensors).float()


@torch.no_grad()
def _norms(sites: Sequence[Site], count: int) -> Tensor:
    """[B]: the norm of each example's gradient by one parameter, over all the sites that use it."""
    squares, held = _way(sites)
    size = max(1, _BUDGET // held)
    chunks = (slice(i, min(i + size, count)) for i in range(0, count, size))
    # Rounding may leave a sum that should be zero a little below it.
    return torch.cat([squares(sites, examples) for examples in chunks]).clamp(min=0).sqrt()


def _way(sites: Sequence[Site]) -> tuple[Callable[[Sequence[Any], slice], Tensor], int]:
    """The cheaper of two ways to the squared norms, and the elements that one example takes."""
    if any(isinstance(site, Own) for site in sites):
        return _summed, max(site.call.size for site in sites if isinstance(site, Own))
    outer = [site for site in sites if isinstance(site, Outer)]
    rows = [max(site.left.lengths) for site in outer]
    widths = [(site.left.width, site.right.width) for site in outer]
    inputs = sum(n * (left + right) for n, (left, right) in zip(rows, widths, strict=True))
    area = max(left * right for left, right in widths)
    products = sum(rows) ** 2 * max(left + right for left, right in widths)
    if any(site.left.looked_up for site in outer) or products < sum(rows) * area:
        return _gram, inputs + 3 * max(rows) ** 2
    return _summed, inputs + 2 * area


def _gram(sites: Sequence[Outer], examples: slice) -> Tensor:
    """‖Σ_t l_t ⊗ r_t‖² = Σ_{t,s} (l_t·l_s)(r_t·r_s), without the gradient itself."""
    sides = [(site.left.of(examples), site.right.of(examples)) for site in sites]
    total = torch.zeros(len(sides[0][0]), dtype=torch.float64, device=sides[0][1].device)
    for i, (left, right) in enumerate(sides):
        for j in range(i + 1):
            share = (_inner(left, sides[j][0]) * _inner(right, sides[j][1])).sum((1, 2), dtype=torch.float64)
            total += share if i == j else 2 * share
    return total


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products [b, T, S] of rows [b, T, D] and [b, S, D]; token numbers [b, T] are one-hot rows."""
    if a.ndim == 3 and b.ndim == 3:
        return a @ b.mT
    if a.ndim == 3:
        return _inner(b, a).mT
    if b.ndim == 2:
        return (a[:, :, None] == b[:, None, :]).float()
    return b.mT.gather(1, a[:, :, None].expand(-1, -1, b.shape[1]))


def _summed(sites: Sequence[Site], examples: slice) -> Tensor:
    """By the gradients themselves."""
    own = [site.gradient(examples) for site in sites if isinstance(site, Own)]
    total = sum(gradient.flatten(1) for gradient in own)
    for site in sites:
        if isinstance(site, Outer):
            left, right = site.left.of(examples), site.right.of(examples)
            if left.ndim == 2:
                left = one_hot(left, own[0].shape[1]).to(right.dtype)
            total = total + (left.mT @ right).flatten(1)
    return cast(Tensor, total).double().square().sum(1)


def _alone(model: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter]) -> Tensor:
    """[B]: the sum of the norms over these parameters, by one pass for each example."""
    totals = []
    for gradients in alone(model, batch, parameters):
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients if g is not None]
        totals.append(torch.stack(norms).sum())
    return torch.stack(totals)
