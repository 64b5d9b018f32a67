"""Rows of different lengths in one forward without padding, on a CPU.

The tokens of all rows follow each other in one row [1, T], so that everything but attention runs on real
tokens only. Attention runs on one piece of that row at a time, and so computes nothing that a mask would
hide. A model runs like this only after a trial has shown that it gives what it gives for padded rows.

On a GPU one kernel per piece would take longer than the padding does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unlearn.data.batching import Batch, Piece
from unlearn.passes.head import unwrap
from unlearn.passes.module_modes import evaluating
from unlearn.passes.prompt_layout import all_prompt, laid_out

_NAME = "unlearn_pieces"
"""The name of this attention among those of transformers."""
_ABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""By model, whether it gives the same without padding."""
_ROUNDING = {torch.float32: 200, torch.float64: 200}
"""How many units of rounding two ways may differ by in the trial, of the largest logit; other dtypes: 8."""
_SHORT = 256
"""Pieces of up to so many tokens have their attention in fp32 where gradients follow: in bf16 the backward
makes kernels anew for each length, which takes longer than to run them (2.8 times at 60 to 130 tokens)."""


@dataclass
class _Pieces:
    pieces: Sequence[Piece]
    lengths: list[int]
    masks: list[Tensor | None]
    calls: int = field(default=0)


_PIECES: ContextVar[_Pieces | None] = ContextVar("pieces", default=None)


def without_padding(model: nn.Module, batch: Batch) -> tuple[Batch, Tensor | None]:
    """Return a right-padded batch as one row in pieces, where the model can run it.

    Its `index` is of the new row. The tensor [B·T] maps positions in the padded batch to positions in the
    row; None: the batch is unchanged. The first call for a model is a trial: a forward of a few tokens (a
    collective where the model's calls are).
    """
    if batch.pieces or not runs_unpadded(model) or batch.attention_mask is not None:
        return batch, None
    width = batch.input_ids.shape[1]
    real = (torch.arange(width, device=batch.widths.device) < batch.widths[:, None]).flatten()
    place = real.cumsum(0) - 1
    position = torch.arange(width, device=real.device).repeat(len(batch.widths))
    row = replace(
        batch,
        input_ids=batch.input_ids.flatten()[real][None],
        position_ids=position[real][None],
        index=place[batch.index],
        pieces=tuple(Piece(length) for length in batch.widths.tolist()),
    )
    return row, place


def runs_unpadded(model: nn.Module) -> bool:
    """Return whether a model can run rows in pieces; see `without_padding` on the first call."""
    inner = unwrap(model)
    # Edits count on padded rows; a second forward, in the backward pass, would not know the pieces.
    if hasattr(inner, "interventions") or getattr(inner, "is_gradient_checkpointing", False):
        return False
    if inner not in _ABLE:
        _ABLE[inner] = _may_run(inner) and _trial(model)
    return _ABLE[inner]


@contextmanager
def in_pieces(model: nn.Module, pieces: Sequence[Piece]) -> Iterator[None]:
    """Let the attention of a model see one row [1, T] as these pieces; without pieces change nothing."""
    if not pieces:
        yield
        return
    weight = next(model.parameters())
    masks = [None if p.after is None else _visible(pieces[p.after].length, p.length, weight) for p in pieces]
    _attention_of_rows()
    token = _PIECES.set(_Pieces(pieces, [piece.length for piece in pieces], masks))
    config = _config(unwrap(model))
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _PIECES.reset(token)


def _may_run(model: Any) -> bool:
    config, weight = _config(model), next(model.parameters(), None)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        weight is not None
        and weight.device.type == "cpu"
        and config._attn_implementation == "sdpa"
        and layers == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and "position_ids" in inspect.signature(_base(model).forward).parameters
    )


@torch.no_grad()
def _trial(model: nn.Module) -> bool:
    """Compare two rows without padding with the same rows padded, and count the layers that were asked."""
    inner = unwrap(model)
    ids = torch.tensor([[1, 2, 3], [3, 1, 0]]) % _config(inner).vocab_size
    pieces, row = (Piece(3), Piece(2)), torch.tensor([[0, 1, 2, 0, 1]])
    with evaluating(inner), laid_out(all_prompt(ids)):
        padded = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[:5]
        with in_pieces(model, pieces):
            together = model(input_ids=ids.flatten()[None, :5], position_ids=row, use_cache=False).logits[0]
            seen = _PIECES.get()
            assert seen is not None
    if seen.calls != _config(inner).num_hidden_layers:
        return False
    unit = torch.finfo(padded.dtype).eps * _ROUNDING.get(padded.dtype, 8)
    return bool((together - padded).abs().max() <= unit * padded.abs().max())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the output [1, T, heads, D] of attention over one row in pieces."""
    row = _PIECES.get()
    if row is None:
        raise RuntimeError("attention in pieces was called outside of in_pieces")
    row.calls += 1
    plain = _attention_of_rows()
    # One split of each, not slices: the derivative of a slice is as large as the row.
    queries, keys, values = (each.split(row.lengths, dim=2) for each in (query, key, value))
    outputs = []
    for i, piece in enumerate(row.pieces):
        k, v = keys[i], values[i]
        if piece.after is not None:
            k, v = (torch.cat([each[piece.after], each[i]], dim=2) for each in (keys, values))
        mask = row.masks[i]
        if query.requires_grad and query.dtype.itemsize < 4 and k.shape[2] <= _SHORT:
            mask = mask if mask is None else mask.float()
            output = plain(module, queries[i].float(), k.float(), v.float(), mask, **options)[0]
        else:
            output = plain(module, queries[i], k, v, mask, **options)[0]
        outputs.append(output.to(query.dtype))
    return torch.cat(outputs, dim=1), None


def _visible(before: int, length: int, like: Tensor) -> Tensor:
    """Return what is added to the scores [1, 1, length, before + length] of a piece after another."""
    hidden = torch.ones(length, before + length, dtype=torch.bool, device=like.device).triu(before + 1)
    zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(hidden, torch.finfo(like.dtype).min)[None, None]


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _config(model: Any) -> Any:
    return _base(model).config.get_text_config(decoder=True)


@cache
def _attention_of_rows() -> Any:
    """Make this attention known to transformers; return the one that is used for whole rows.

    Imported late: a dry run needs no models of transformers.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
    return AttentionInterface()["sdpa"]
