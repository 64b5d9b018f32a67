"""Capture the uses of a model's trained parameters by each example of a batch, in one forward and backward.

The examples of a batch share only the weights, so the gradient at a row of an operation's output belongs to
the example of that row. Together with the input rows it gives that example's gradient by the operation's
parameters (arXiv 1510.01799; for sequences arXiv 2110.05679, section 4).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.data.batching import Batch
from unlearn.passes.forward import answer_logits
from unlearn.passes.per_example.parameter_uses import Site
from unlearn.passes.per_example.recorder import Call, Recorder

# Elements of one fp32 block of output gradients.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Capture:
    """The uses of trained parameters.

    `sites` has a list for each parameter, the sum of whose gradients is the parameter's. `missed` are
    parameters with a use whose rows cannot be assigned to examples.
    """

    sites: list[list[Site]]
    missed: list[nn.Parameter]


def captured(model: nn.Module, batch: Batch) -> Capture:
    """Return every use of every trained parameter in the mean negative log-likelihood of each answer.

    The parameters, their gradients and flags stay as they are. No weights are needed outside of the modules'
    own calls, so they may be partitioned. The result holds the inputs and output gradients of the whole
    batch.
    """
    recorder = Recorder(model, batch)
    with torch.enable_grad(), recorder.recording():
        logits = answer_logits(model, batch)
    if not logits.requires_grad:
        return Capture([], [])
    calls = recorder.calls
    missed = _outside(logits, calls, recorder.trained.keys())
    grads: Sequence[Tensor | None] = ()
    if calls:
        edges = [call.edge for call in calls]
        grads = torch.autograd.grad(logits, edges, slope(logits.detach(), batch), allow_unused=True)
    sites: dict[int, list[Site]] = {}
    for call, grad in zip(calls, grads, strict=True):
        for site in call.sites(grad) if grad is not None else ():
            if id(site.parameter) not in missed:
                sites.setdefault(id(site.parameter), []).append(site)
    return Capture(list(sites.values()), [recorder.trained[key] for key in missed])


@torch.no_grad()
def slope(logits: Tensor, batch: Batch) -> Tensor:
    """Return the gradient [N, V] of the examples' mean negative log-likelihoods, summed over examples.

    At the label it is minus the sum of the other tokens' probabilities, instead of p − 1, which loses its
    digits in fp32 for a likely label.
    """
    share = (1 / batch.lengths.double()).repeat_interleave(batch.lengths)
    out = torch.empty_like(logits)
    size = max(1, _BLOCK // logits.shape[-1])
    blocks = (x.split(size) for x in (logits, batch.labels, share, out))
    for rows, labels, shares, into in zip(*blocks, strict=True):
        wide = torch.promote_types(rows.dtype, torch.float32)
        prob = rows.to(wide).softmax(-1).scatter_(-1, labels[:, None], 0.0)
        prob.scatter_(-1, labels[:, None], -prob.sum(-1, keepdim=True))
        into.copy_(prob.mul_(shares[:, None].to(wide)))
    return out


def gradients_one_by_one(
    model: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter]
) -> Iterator[Sequence[Tensor | None]]:
    """Yield the gradients by these parameters of one example after the other, with one pass for each.

    Raises:
        NotImplementedError: ZeRO 3 partitions one of the parameters.
    """
    if any(hasattr(p, "ds_id") for p in parameters):
        names = ", ".join(n for n, p in model.named_parameters() if any(p is q for q in parameters))
        raise NotImplementedError(
            f"gradients of single examples by {names}: the rows at its use cannot be assigned to examples, "
            "and ZeRO partitions it; use the saved model in one process instead"
        )
    for one in _singles(batch):
        with torch.enable_grad():
            logits = answer_logits(model, one)
        yield torch.autograd.grad(logits, parameters, slope(logits.detach(), one), allow_unused=True)


def _singles(batch: Batch) -> Iterator[Batch]:
    """Yield batches of one example each, without padding."""
    width, start = batch.input_ids.shape[1], 0
    for row, (count, own) in enumerate(zip(batch.lengths.tolist(), batch.widths.tolist(), strict=True)):
        tokens = slice(start, start := start + count)
        one = slice(row, row + 1)
        yield Batch(
            input_ids=batch.input_ids[one, :own],
            index=batch.index[tokens] - row * width,
            labels=batch.labels[tokens],
            lengths=batch.lengths[one],
            prompt_end=batch.prompt_end[one],
            widths=batch.widths[one],
        )


def _outside(logits: Tensor, calls: Sequence[Call], trained: Collection[int]) -> list[int]:
    """Return the ids of parameters that the graph reaches other than through the calls."""
    inside: dict[Any, list[Any]] = {call.edge.node: call.inputs for call in calls}
    todo: list[Any] = [logits.grad_fn]
    seen: set[Any] = set()
    reached: dict[int, bool] = {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in inside:
            todo += inside[node]
            continue
        leaf = id(getattr(node, "variable", None))
        if leaf in trained:
            reached[leaf] = True
        todo += [following for following, _ in node.next_functions]
    return list(reached)
