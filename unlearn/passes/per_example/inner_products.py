"""Inner products of single examples' gradients with given directions, without forming those gradients.

One forward and one backward serve a whole batch: see `unlearn.passes.per_example.capture`. The inner product
of an example's gradient Σ_t l_t ⊗ r_t with a direction V is Σ_t l_t·(V r_t): as much work as one more
forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn.data.batching import Batch
from unlearn.passes.per_example.capture import captured, gradients_one_by_one
from unlearn.passes.per_example.parameter_uses import Outer, Own, Site
from unlearn.passes.products import linear

# Elements held for one parameter at a time, in addition to the capture: a GPU is faster with larger blocks.
_BUDGET = {"cpu": 1 << 21, "cuda": 1 << 26}
# A gradient of one example with more elements than this is not formed.
_LARGEST = 1 << 26
# With fewer rows than this, an example's gradient costs more to read than its rows.
_FEW = 8
_DENSE = 0.9  # share of tokens in a batch above which its padding is not left out


def inner_products(
    model: nn.Module, batch: Batch, directions: Iterable[tuple[str, Sequence[Tensor] | None]]
) -> dict[str, Tensor]:
    """Return <∇ of example b's mean negative log-likelihood, direction k> by parameter, float64 [K, B].

    The mean is over the example's answer tokens. `directions` yields names of trained parameters with K whole
    tensors of the parameter's shape, or None where all K are zero: such a parameter is left out. The iterable
    may gather the tensors one by one: it is read once, to its end, after the pass over the batch. The model
    must be in eval mode; its gradients and flags stay as they are. Under ZeRO 3 every call is a collective.

    Raises:
        ValueError: the model is in training mode, a name is not of a trained parameter, or a shape differs.
        NotImplementedError: ZeRO 3 partitions a parameter that is used outside of the modules' own calls.
    """
    if model.training:
        raise ValueError("inner_products needs a model in eval mode: call model.eval() before")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    uses, missed = _uses(model, batch)
    tokens = _Tokens.of(batch)
    products: dict[str, Tensor] = {}
    later: list[tuple[str, Sequence[Tensor]]] = []
    for name, vectors in directions:
        if vectors is None:
            continue
        _check(name, vectors, trained)
        total = torch.zeros(
            len(vectors), len(batch.lengths), dtype=torch.float64, device=batch.lengths.device
        )
        products[name] = total
        if id(trained[name]) in missed:
            later.append((name, vectors))
        for site in uses.pop(id(trained[name]), ()):  # not needed again
            total += _along(site, vectors, tokens)
    if later:
        _one_by_one(model, batch, [trained[name] for name, _ in later], later, products)
    return products


def _uses(model: nn.Module, batch: Batch) -> tuple[dict[int, list[Site]], set[int]]:
    """Return the captured uses by the id of their parameter, and the ids of parameters with other uses."""
    capture = captured(model, batch)
    return {id(sites[0].parameter): sites for sites in capture.sites}, {id(p) for p in capture.missed}


def _check(name: str, vectors: Sequence[Tensor], trained: dict[str, nn.Parameter]) -> None:
    if name not in trained:
        raise ValueError(f"a direction is given for {name}, which is no trained parameter of the model")
    shape = getattr(trained[name], "ds_shape", trained[name].shape)
    for direction in vectors:
        if direction.shape != shape:
            raise ValueError(
                f"a direction for {name} is {list(direction.shape)}, the parameter {list(shape)}"
            )


@torch.no_grad()
def _along(site: Site, vectors: Sequence[Tensor], tokens: _Tokens | None) -> Tensor:
    """Return the inner products of one use of a parameter, [K, B].

    Either each row is multiplied by each direction, or the gradient is formed once and then read for each
    direction, which is cheaper from the second direction on.
    """
    if isinstance(site, Own):
        return _formed(site.gradient, vectors, len(site.grads), site.call.size)
    left, right, lengths = site.left, site.right, site.right.lengths
    area = left.width * right.width
    if left.looked_up or len(vectors) == 1 or max(lengths) < _FEW or area > _LARGEST:
        return _by_row(site, vectors, tokens)

    def gradient(examples: slice) -> Tensor:
        longest = max((tokens.lengths if tokens and lengths == tokens.padded else lengths)[examples])
        return left.of(examples)[:, :longest].mT @ right.of(examples)[:, :longest]

    return _formed(gradient, vectors, len(lengths), area)


def _formed(
    gradient: Callable[[slice], Tensor], vectors: Sequence[Tensor], examples: int, area: int
) -> Tensor:
    """Return inner products [K, B] by forming the gradients, each of `area` elements."""
    size = max(1, _BUDGET[vectors[0].device.type] // area)
    products = []
    for start in range(0, examples, size):
        flat = gradient(slice(start, min(start + size, examples))).flatten(1)
        products.append(torch.stack([flat @ v.flatten().to(flat) for v in vectors]).double())
    return torch.cat(products, dim=1)


@dataclass(frozen=True)
class _Tokens:
    """The rows of a batch that are not padding; only of a batch with enough padding to leave it out."""

    padded: tuple[int, ...]
    index: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch) -> _Tokens | None:
        size, width = batch.input_ids.shape
        widths = batch.widths
        if int(widths.sum()) > _DENSE * size * width:
            return None
        index = (torch.arange(width, device=widths.device) < widths[:, None]).flatten().nonzero()[:, 0]
        return cls((width,) * size, index, tuple(widths.tolist()))


def _by_row(site: Outer, vectors: Sequence[Tensor], tokens: _Tokens | None) -> Tensor:
    """Return inner products [K, B] by multiplying each row by each direction."""
    left, right, lengths = site.left.values, site.right.values, site.right.lengths
    index = None
    if tokens is not None and lengths == tokens.padded:
        index, lengths = tokens.index, tokens.lengths
    dtype = torch.promote_types(right.dtype, torch.float32)
    count, functions = sum(lengths), [_row_product(site, v.to(right.device, dtype)) for v in vectors]
    products = torch.empty(count, len(vectors), dtype=dtype, device=right.device)
    step = max(1, _BUDGET[right.device.type] // (site.left.width + 2 * site.right.width))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        chosen = rows if index is None else index[rows]
        sides = left[chosen], right[chosen].to(dtype)
        for k, function in enumerate(functions):
            products[rows, k] = function(*sides)
    size = torch.tensor(lengths, device=right.device)
    return torch.segment_reduce(products.double(), "sum", lengths=size, axis=0, unsafe=True).T


def _row_product(site: Outer, direction: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of rows l [r, D] (or token ids) and r [r, E] that computes l·V·r [r].

    V is first multiplied by the wider side, so that the intermediate result has the narrower width.
    """
    if site.left.looked_up:
        return lambda ids, right: torch.linalg.vecdot(direction[ids], right)
    matrix = direction.reshape(site.left.width, site.right.width)
    if site.left.width >= site.right.width:
        return lambda left, right: linear(left.to(matrix.dtype), matrix.mT).mul_(right).sum(-1)
    return lambda left, right: linear(right, matrix).mul_(left).sum(-1)


def _one_by_one(
    model: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter],
    directions: Sequence[tuple[str, Sequence[Tensor]]], products: dict[str, Tensor],
) -> None:  # fmt: skip
    """Add the inner products of the missed parameters, by one pass for each example."""
    for row, gradients in enumerate(gradients_one_by_one(model, batch, parameters)):
        for gradient, (name, vectors) in zip(gradients, directions, strict=True):
            if gradient is None:
                continue
            wide = gradient.flatten().double()
            products[name][:, row] += torch.stack([wide @ v.flatten().to(wide) for v in vectors])
