"""Read what a model's states say of an answer: put into the target's blocks, or decoded by norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from eval.collection.turns import turns
from unlearn import interventions
from unlearn.data.batching import Batch, collate
from unlearn.data.example import Example
from unlearn.data.tokenization import BoolArray, TokenSequence
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.passes.block_states import block_states, decoded_logp, overwritten
from unlearn.passes.forward import record
from unlearn.passes.head import unwrap
from unlearn.passes.module_modes import evaluating
from unlearn.passes.out_of_memory import Bins, in_portions
from unlearn.passes.products import fast_linear_layers
from unlearn.passes.unpadded import without_padding


@dataclass(frozen=True)
class Item:
    """An example, its tokens, and which tokens of the answer are measured, [answer length]."""

    example: Example
    sequence: TokenSequence
    measured: BoolArray


@dataclass(frozen=True)
class Scores:
    """Mean log-probabilities [E, L] of the measured tokens by block, NaN where there is none.

    `patched`: of the target with the block's output overwritten. `lens`: decoded from the block's output by
    the target's norm and head; `own`: by those of the model itself, NaN for one with an intervention.
    """

    patched: np.ndarray
    lens: np.ndarray
    own: np.ndarray


def read_scores(
    items: Sequence[Item], target: nn.Module, source: nn.Module, world: World, *, max_tokens: int
) -> Scores:
    """Return the scores of a model's states, where `source` may be the target itself.

    One pass of the source and, for another model than the target, one of the target for each block.
    `max_tokens` bounds rows × longest of a pass. All processes share the examples; a collective. The calls of
    both models are collectives if `world` says so.

    Raises:
        UserError: the model has other blocks than the target, or the target has an intervention inside.
    """
    if interventions.attached(target):
        raise UserError("the target has an intervention inside, which would edit overwritten states again")
    shapes = [unwrap(model).config.get_text_config(decoder=True) for model in (target, source)]
    if len({(shape.num_hidden_layers, shape.hidden_size) for shape in shapes}) > 1:
        raise UserError("the model and its target differ in the number or the width of their blocks")

    def compute(bins: Bins) -> list[tuple[int, Tensor]]:
        mine: list[tuple[int, Tensor]] = []
        for part, called, limit in turns(world, bins, measured):
            batch = _batch([items[i] for i in called]).to(world.device)
            values = _of_batch(target, source, batch, limit)
            mine += list(zip(part, values if part else values[:0], strict=True))
        return mine

    lengths = [len(item.sequence.ids) - 1 for item in items]
    measured = [int(item.measured.sum()) for item in items]
    with evaluating(target), evaluating(source), fast_linear_layers(target):
        rows = in_portions(
            world, "eval_tokens", max_tokens, lengths, compute, collective=world.collective_forward
        )
    gathered = dict(world.gather([(i, values.numpy()) for i, values in rows]))
    return Scores(*np.stack([gathered[i] for i in range(len(items))], axis=1))


def _batch(items: Sequence[Item]) -> Batch:
    """Return the batch of the items whose positions are those that predict a measured token."""
    batch = collate([item.sequence for item in items])
    measured = torch.from_numpy(np.concatenate([item.measured for item in items]))
    lengths = torch.tensor([int(item.measured.sum()) for item in items])
    return replace(batch, index=batch.index[measured], labels=batch.labels[measured], lengths=lengths)


def _of_batch(target: nn.Module, source: nn.Module, batch: Batch, limit: int) -> Tensor:
    """Return [B, 3, L] in the order of `Scores`, one pass of the target for each block.

    `limit`: the largest number of measured tokens in any process's batch of that turn.
    """
    states = block_states(source, without_padding(source, batch)[0])  # as the target is run, bit for bit
    if source is target:
        patched = [record(target, batch, limit).logp] * len(states)
    else:
        patched = [_patched(target, block, batch, each, limit) for block, each in enumerate(states)]
    lens = [decoded_logp(target, each, batch.labels, limit) for each in states]
    own = _own(source, states, batch, limit) if source is not target else lens
    tokens = torch.stack([torch.stack(each) for each in (patched, lens, own)]).double().cpu()  # [3, L, N]
    means = [part.mean(-1) for part in tokens.split(batch.lengths.tolist(), dim=-1)]
    return torch.stack(means)


def _patched(target: nn.Module, block: int, batch: Batch, states: Tensor, limit: int) -> Tensor:
    row, _ = without_padding(target, batch)  # positions are those of the pass
    with overwritten(target, block, row.index, states):
        return record(target, row, limit).logp


def _own(source: nn.Module, states: Sequence[Tensor], batch: Batch, limit: int) -> list[Tensor]:
    if interventions.attached(source):
        return [torch.full_like(batch.labels, torch.nan, dtype=torch.float32)] * len(states)
    return [decoded_logp(source, each, batch.labels, limit) for each in states]
