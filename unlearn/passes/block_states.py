"""Hidden states between the blocks of a causal model: read them, overwrite them, and decode them.

The state of a block is its own output. The list of hidden states that transformers returns has the last one
after the final norm instead, which does not fit where a block's output belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unlearn import interventions
from unlearn.data.batching import Batch
from unlearn.errors import UserError
from unlearn.interventions._base import edited, hidden_of
from unlearn.passes.forward import answer_logits
from unlearn.passes.head import unwrap
from unlearn.passes.prompt_layout import all_prompt, laid_out
from unlearn.passes.token_logp import token_logp

_LOGITS = 1 << 26  # logits in memory at a time
_IN_TUPLES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""By model, whether its blocks return tuples that begin with the hidden states."""


@torch.no_grad()
def block_states(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the output of each block [N, D] at the batch's positions, before the final norm.

    Edits of a block count: its output is what the next block reads.

    Raises:
        UserError: the model has no list of blocks.
    """
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append(hidden_of(output).flatten(0, 1)[batch.index])

    handles = [block.register_forward_hook(keep) for block in interventions.blocks(model)]
    try:
        answer_logits(model, replace(batch, index=batch.index[:0], labels=batch.labels[:0]))
    finally:
        for handle in handles:
            handle.remove()
    return states


@contextmanager
def overwritten(model: nn.Module, block: int, index: Tensor, states: Tensor) -> Iterator[None]:
    """Replace the output of a block, counted from 0, by `states` [N, D] at positions [N] of the flat batch.

    What the later blocks compute follows from it: activation patching.
    """

    def patch(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        flat = hidden.flatten(0, 1).index_copy(0, index, states.to(hidden))
        return edited(output, flat.view_as(hidden))

    handle = interventions.blocks(model)[block].register_forward_hook(patch)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def decoded_logp(model: nn.Module, states: Tensor, labels: Tensor, limit: int = 0) -> Tensor:
    """Return log p [N] of `labels` [N] where the last block's output is `states` [N, D]: the logit lens.

    The model's own final norm and head decode, with whatever the family does to logits after them. The number
    of logits in memory at a time is bounded. Where a call of the model is a collective, `limit` is the
    largest N of any process, and N is at least 1.

    Raises:
        UserError: the model has no list of blocks, or has edits inside, which would act on the states again.
    """
    if interventions.attached(model):
        raise UserError(
            f"the logit lens decodes states by the norm and the head of a plain model; this "
            f"{type(unwrap(model)).__name__} has an intervention inside"
        )
    vocabulary = int(unwrap(model).config.get_text_config(decoder=True).vocab_size)
    rows = max(1, _LOGITS // vocabulary)
    parts = []
    for start in range(0, max(limit, len(states)), rows):
        own = slice(start, start + rows)
        # Without rows left, this process's part of the others' collectives is a call on its first.
        some, wanted = (x[own] if start < len(states) else x[:1] for x in (states, labels))
        logp = token_logp(_after_blocks(model, some), wanted)
        parts.append(logp if start < len(states) else logp[:0])
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def _after_blocks(model: nn.Module, states: Tensor) -> Tensor:
    """Return logits [N, V] of a pass whose blocks all return the states, a row of one token each."""
    ids = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    hidden = states[:, None].to(next(model.parameters()).dtype)
    output = (hidden,) if _in_tuples(model) else hidden
    with ExitStack() as stack:
        for block in interventions.blocks(model):
            stack.enter_context(_returning(block, output))
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.squeeze(1)


@contextmanager
def _returning(block: nn.Module, output: Any) -> Iterator[None]:
    own = block.__dict__.get("forward")
    block.__dict__["forward"] = partial(_constant, output)
    try:
        yield
    finally:
        del block.__dict__["forward"]
        if own is not None:
            block.__dict__["forward"] = own


def _constant(output: Any, *_: Any, **__: Any) -> Any:
    return output


def _in_tuples(model: nn.Module) -> bool:
    inner = unwrap(model)
    if inner not in _IN_TUPLES:
        seen: list[bool] = []
        handle = interventions.blocks(model)[-1].register_forward_hook(
            lambda _, __, output: seen.append(isinstance(output, tuple))
        )
        ids = torch.zeros(1, 1, dtype=torch.long, device=next(inner.parameters()).device)
        try:
            with laid_out(all_prompt(ids)):
                inner(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        _IN_TUPLES[inner] = seen[0]
    return _IN_TUPLES[inner]
