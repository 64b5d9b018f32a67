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
from unlearn.passes.per_example.capture import captured, gradients_one_by_one
from unlearn.passes.per_example.parameter_uses import Outer, Own, Site

# Elements held for one parameter at a time, in addition to the capture.
_BUDGET = 1 << 23


def gradient_norms(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean over the trained parameter tensors of the norm of each example's gradient, [B] fp32.

    The gradient is that of the mean negative log-likelihood of the example's answer tokens; a tensor that is
    used in several places counts once (OpenUnlearning's GradNorm with p = 2). The model must be in eval mode;
    its gradients and flags stay as they are, so that a training step may be in progress. Under ZeRO 3 every
    call is a collective.

    Raises:
        ValueError: the model is in training mode, or has no trained parameter.
        NotImplementedError: ZeRO 3 partitions a parameter that is used outside of the modules' own calls.
    """
    if model.training:
        raise ValueError("gradient_norms needs a model in eval mode: call model.eval() before")
    tensors = sum(p.requires_grad for p in model.parameters())
    if not tensors:
        raise ValueError("gradient_norms: no parameter of the model has requires_grad")
    capture = captured(model, batch)
    total = torch.zeros(len(batch.lengths), dtype=torch.float64, device=batch.lengths.device)
    for sites in capture.sites:
        total += _norms(sites, len(batch.lengths))
    if capture.missed:
        total += _one_by_one(model, batch, capture.missed)
    return (total / tensors).float()


@torch.no_grad()
def _norms(sites: Sequence[Site], count: int) -> Tensor:
    """Return the norm of each example's gradient by one parameter, over all the sites that use it, [B]."""
    squares, held = cheaper(sites)
    size = max(1, _BUDGET // held)
    chunks = (slice(i, min(i + size, count)) for i in range(0, count, size))
    # Rounding may make a sum that should be zero slightly negative.
    return torch.cat([squares(sites, examples) for examples in chunks]).clamp(min=0).sqrt()


def cheaper(sites: Sequence[Site]) -> tuple[Callable[[Sequence[Any], slice], Tensor], int]:
    """Return the cheaper function for squared norms, and the elements that it holds for one example."""
    if any(isinstance(site, Own) for site in sites):
        return by_sums, max(site.call.size for site in sites if isinstance(site, Own))
    outer = [site for site in sites if isinstance(site, Outer)]
    rows = [max(site.left.lengths) for site in outer]
    widths = [(site.left.width, site.right.width) for site in outer]
    inputs = sum(n * (left + right) for n, (left, right) in zip(rows, widths, strict=True))
    area = max(left * right for left, right in widths)
    products = sum(rows) ** 2 * max(left + right for left, right in widths)
    if any(site.left.looked_up for site in outer) or products < sum(rows) * area:
        return by_gram_matrices, inputs + 3 * max(rows) ** 2
    return by_sums, inputs + 2 * area


def by_gram_matrices(sites: Sequence[Outer], examples: slice) -> Tensor:
    """Return ‖Σ_t l_t ⊗ r_t‖² = Σ_{t,s} (l_t·l_s)(r_t·r_s) without forming the gradient."""
    sides = [(site.left.of(examples), site.right.of(examples)) for site in sites]
    total = torch.zeros(len(sides[0][0]), dtype=torch.float64, device=sides[0][1].device)
    for i, (left, right) in enumerate(sides):
        for j in range(i + 1):
            share = (_inner(left, sides[j][0]) * _inner(right, sides[j][1])).sum((1, 2), dtype=torch.float64)
            total += share if i == j else 2 * share
    return total


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products [b, T, S] of rows [b, T, D] and [b, S, D]; token ids [b, T] are one-hot rows."""
    if a.ndim == 3 and b.ndim == 3:
        return a @ b.mT
    if a.ndim == 3:
        return _inner(b, a).mT
    if b.ndim == 2:
        return (a[:, :, None] == b[:, None, :]).float()
    return b.mT.gather(1, a[:, :, None].expand(-1, -1, b.shape[1]))


def by_sums(sites: Sequence[Site], examples: slice) -> Tensor:
    """Return squared norms by forming the gradients."""
    own = [site.gradient(examples) for site in sites if isinstance(site, Own)]
    total = sum(gradient.flatten(1) for gradient in own)
    for site in sites:
        if isinstance(site, Outer):
            left, right = site.left.of(examples), site.right.of(examples)
            if left.ndim == 2:
                left = one_hot(left, own[0].shape[1]).to(right.dtype)
            total = total + (left.mT @ right).flatten(1)
    return cast(Tensor, total).double().square().sum(1)


def _one_by_one(model: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the sum of the norms over these parameters, [B], by one pass for each example."""
    totals = []
    for gradients in gradients_one_by_one(model, batch, parameters):
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients if g is not None]
        totals.append(torch.stack(norms).sum())
    return torch.stack(totals)
