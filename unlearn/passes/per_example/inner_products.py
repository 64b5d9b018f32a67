"""Inner products of single examples' gradients with given directions, without those gradients.

One forward and one backward serve a whole batch: see `unlearn.passes.per_example.capture`. What the gradient
of an example, Σ_t l_t ⊗ r_t, has in common with a direction V is Σ_t l_t·(V r_t): as much work as one more
forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn.data.batching import Batch
from unlearn.passes.per_example.capture import alone, captured
from unlearn.passes.per_example.mkldnn_linear import linear
from unlearn.passes.per_example.parameter_uses import Outer, Own, Site

# Elements held for one parameter at a time, beside what the pass itself keeps: a GPU wants more at once.
_BUDGET = {"cpu": 1 << 21, "cuda": 1 << 26}
# A gradient of one example with more elements than this is not formed.
_LARGEST = 1 << 26
# With fewer rows than this an example's gradient costs more to read than its rows do.
_FEW = 8
_DENSE = 0.9


def inner_products(
    model: nn.Module, batch: Batch, directions: Iterable[tuple[str, Sequence[Tensor] | None]]
) -> dict[str, Tensor]:
    """By parameter, float64 [K, B]: <∇ of example b's mean negative log-likelihood, direction k>.

    The mean is over its answer tokens. `directions` gives names of trained parameters with K whole tensors
    of the parameter's shape, or None where all K are zero: such a parameter is left out. It may gather them
    one by one: it is read once, to its end, after the pass over the batch. The model has to be in eval mode;
    its gradients and flags stay as they are. Under ZeRO 3 every call is a collective.

    Raises:
        ValueError: the model is in training mode, a name is of no trained parameter, or a shape differs.
        NotImplementedError: ZeRO 3 partitions a parameter that is used outside of the modules' own calls.
    """
    if model.training:
        raise ValueError("inner_products is of a model in eval mode: call model.eval() before")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    uses, missed = _uses(model, batch)
    real = _Real.of(batch)
    products: dict[str, Tensor] = {}
    later: list[tuple[str, Sequence[Tensor]]] = []
    for name, given in directions:
        if given is None:
            continue
        _check(name, given, trained)
        total = torch.zeros(len(given), len(batch.lengths), dtype=torch.float64, device=batch.lengths.device)
        products[name] = total
        if id(trained[name]) in missed:
            later.append((name, given))
        for site in uses.pop(id(trained[name]), ()):  # not needed again
            total += _along(site, given, real)
    if later:
        _one_by_one(model, batch, [trained[name] for name, _ in later], later, products)
    return products


def _uses(model: nn.Module, batch: Batch) -> tuple[dict[int, list[Site]], set[int]]:
    """By the identity of parameters: what is known of their uses, and those of which it is not."""
    found = captured(model, batch)
    return {id(sites[0].parameter): sites for sites in found.sites}, {id(p) for p in found.missed}


def _check(name: str, given: Sequence[Tensor], trained: dict[str, nn.Parameter]) -> None:
    if name not in trained:
        raise ValueError(f"a direction is given for {name}, which is no trained parameter of the model")
    shape = getattr(trained[name], "ds_shape", trained[name].shape)
    for direction in given:
        if direction.shape != shape:
            raise ValueError(
                f"a direction for {name} is {list(direction.shape)}, the parameter {list(shape)}"
            )


@torch.no_grad()
def _along(site: Site, given: Sequence[Tensor], real: _Real | None) -> Tensor:
    """[K, B] of one use of a parameter.

    A product of each row with each direction, or one of all rows for the gradient and a reading of it for
    each direction, which is cheaper from the second on.
    """
    if isinstance(site, Own):
        return _formed(site.gradient, given, len(site.grads), site.call.size)
    left, right, lengths = site.left, site.right, site.right.lengths
    area = left.width * right.width
    if left.looked_up or len(given) == 1 or max(lengths) < _FEW or area > _LARGEST:
        return _by_row(site, given, real)

    def gradient(some: slice) -> Tensor:
        longest = max((real.lengths if real and lengths == real.padded else lengths)[some])
        return left.of(some)[:, :longest].mT @ right.of(some)[:, :longest]

    return _formed(gradient, given, len(lengths), area)


def _formed(gradient: Callable[[slice], Tensor], given: Sequence[Tensor], examples: int, area: int) -> Tensor:
    """By the gradients themselves, of which one takes `area` elements."""
    size = max(1, _BUDGET[given[0].device.type] // area)
    found = []
    for start in range(0, examples, size):
        flat = gradient(slice(start, min(start + size, examples))).flatten(1)
        found.append(torch.stack([flat @ v.flatten().to(flat) for v in given]).double())
    return torch.cat(found, dim=1)


@dataclass(frozen=True)
class _Real:
    """The rows of a batch that are no padding, where there is so much that picking them pays."""

    padded: tuple[int, ...]
    index: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch) -> _Real | None:
        size, width = batch.input_ids.shape
        widths = batch.widths
        if int(widths.sum()) > _DENSE * size * width:
            return None
        index = (torch.arange(width, device=widths.device) < widths[:, None]).flatten().nonzero()[:, 0]
        return cls((width,) * size, index, tuple(widths.tolist()))


def _by_row(site: Outer, given: Sequence[Tensor], real: _Real | None) -> Tensor:
    left, right, lengths = site.left.values, site.right.values, site.right.lengths
    index = None
    if real is not None and lengths == real.padded:
        index, lengths = real.index, real.lengths
    dtype = torch.promote_types(right.dtype, torch.float32)
    count, ways = sum(lengths), [_way(site, v.to(right.device, dtype)) for v in given]
    found = torch.empty(count, len(given), dtype=dtype, device=right.device)
    step = max(1, _BUDGET[right.device.type] // (site.left.width + 2 * site.right.width))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        here = rows if index is None else index[rows]
        sides = left[here], right[here].to(dtype)
        for k, way in enumerate(ways):
            found[rows, k] = way(*sides)
    size = torch.tensor(lengths, device=right.device)
    return torch.segment_reduce(found.double(), "sum", lengths=size, axis=0, unsafe=True).T


def _way(site: Outer, direction: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """From rows l [r, D] (or token numbers) and r [r, E] to l·V·r [r], by way of the narrower side."""
    if site.left.looked_up:
        return lambda ids, right: torch.linalg.vecdot(direction[ids], right)
    matrix = direction.reshape(site.left.width, site.right.width)
    if site.left.width >= site.right.width:
        return lambda left, right: linear(left.to(matrix.dtype), matrix.mT).mul_(right).sum(-1)
    return lambda left, right: linear(right, matrix).mul_(left).sum(-1)


def _one_by_one(
    model: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter],
    given: Sequence[tuple[str, Sequence[Tensor]]], products: dict[str, Tensor],
) -> None:  # fmt: skip
    """What is missed, by one pass for each example."""
    for row, gradients in enumerate(alone(model, batch, parameters)):
        for gradient, (name, several) in zip(gradients, given, strict=True):
            if gradient is None:
                continue
            wide = gradient.flatten().double()
            products[name][:, row] += torch.stack([wide @ v.flatten().to(wide) for v in several])
