"""One pass of a model over a batch, for the answer tokens only.

The output head runs on the N positions that predict an answer token, so the [batch, length, vocabulary]
tensor of logits never exists. Right padding under causal attention needs no attention mask, so that the
fast attention kernels apply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from unlearn.data.batching import Batch
from unlearn.passes.head import (
    ExtraLogits,
    Head,
    head_gives_logp,
    head_is_plain,
    head_on,
    logits_are_plain,
    unwrap,
)
from unlearn.passes.prompt_layout import laid_out, right_padded
from unlearn.passes.token_logp import block_rows, blocks, token_logp
from unlearn.passes.unpadded import in_pieces, without_padding

_LOGITS = 1 << 26  # logits in memory at a time, in a pass without gradients


@dataclass(frozen=True)
class AnswerLogp:
    """Log-probabilities of answer tokens: `logp` [N] in nats, fp32; `lengths` [B] cuts N into examples."""

    logp: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class ForwardRequest:
    """Outputs requested at some positions of a batch.

    `index` [N] and `labels` [N] as in `Batch`. `layers`: hidden states after these layers (0: embeddings).
    `states`: heads and hidden states [N, D] of other models, by the name that their logits get.
    """

    index: Tensor
    labels: Tensor
    logp: bool = False
    logits: bool = False
    layers: tuple[int, ...] = ()
    states: Mapping[str, tuple[Head, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenRecord:
    """Statistics of answer tokens for likelihood metrics, each [N], fp32 (`correct`: bool).

    `logp` of the token, whether it is the arg-max, and mean and variance of log p over the vocabulary
    under the model's own distribution (for Min-K++, arXiv 2404.02936).
    """

    logp: Tensor
    correct: Tensor
    mean: Tensor
    variance: Tensor
    lengths: Tensor


def forward(model: nn.Module, batch: Batch) -> AnswerLogp:
    """Return log-probabilities of the answer tokens, differentiable."""
    batch, _ = without_padding(model, batch)
    return AnswerLogp(token_logp(answer_logits(model, batch), batch.labels), batch.lengths)


@torch.no_grad()
def record(model: nn.Module, batch: Batch, limit: int = 0) -> TokenRecord:
    """Return the statistics of a pass without gradients that likelihood metrics need.

    The number of logits in memory at a time is bounded. Where a call of the head is a collective, `limit` is
    the largest N of any process: it determines in how many pieces the head runs.
    """
    batch, _ = without_padding(model, batch)
    logp, means, variance = torch.empty(3, len(batch.index), device=batch.index.device)
    correct = torch.empty(len(batch.index), dtype=torch.bool, device=batch.index.device)
    done = 0
    for logits, labels in _logits(model, batch, max(limit, len(batch.index))):
        # One buffer for all blocks: blocks freed between results that stay would fragment the memory.
        space = torch.empty(2, block_rows(logits), logits.shape[-1], device=logits.device)
        for rows, wanted in blocks(logits, labels):
            part = slice(done, done := done + len(rows))
            block, relative = space[:, : len(rows)]
            block.copy_(rows)
            block.sub_(block.amax(-1, keepdim=True))
            correct[part] = _are_likeliest(block, wanted, relative)
            total = torch.exp(block, out=relative).sum(-1)
            log_total = total.log()
            logp[part] = block.gather(-1, wanted[:, None])[:, 0] - log_total
            mean = torch.linalg.vecdot(relative, block) / total
            means[part] = mean - log_total
            variance[part] = torch.linalg.vecdot(relative, block.sub_(mean[:, None]).square_()) / total
    return TokenRecord(logp, correct, means, variance, batch.lengths)


def _are_likeliest(block: Tensor, labels: Tensor, space: Tensor) -> Tensor:
    """Return [n] whether each label is the arg-max of its row of scores [n, V], whose maximum is 0.

    `space` [n, V] is overwritten.
    """
    if block.device.type != "cpu":
        return block.argmax(-1) == labels
    # On a CPU the arg-max takes as long as exp does: it is left to rows with several largest scores.
    likeliest = block.gather(-1, labels[:, None])[:, 0] == 0
    tied = torch.eq(block, 0, out=space).sum(-1) > 1
    if tied.any():
        likeliest[tied] = block[tied].argmax(-1) == labels[tied]
    return likeliest


def _logits(model: nn.Module, batch: Batch, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits at the batch's positions with their labels, at most `_LOGITS` numbers at a time."""
    inner = unwrap(model)
    pieces = -(-limit * int(inner.config.get_text_config(decoder=True).vocab_size) // _LOGITS)
    if pieces <= 1 or hasattr(inner, "interventions"):  # an edit may need all positions
        yield answer_logits(model, batch), batch.labels
        return
    head: Any = inner.get_output_embeddings()
    seen: list[Tensor] = []
    with _laid_out(batch, batch.index[:0]), head_on(model, batch.index[:0], watch=seen):
        _run(model, batch)
    plain = logits_are_plain(model)
    size = -(-limit // pieces)
    for start in range(0, size * pieces, size):
        hidden = seen[0].flatten(0, 1)[batch.index[start : start + size]]
        piece = head(hidden) if plain else _after_backbone(model, hidden)
        yield piece, batch.labels[start : start + size]


def _after_backbone(model: nn.Module, hidden: Tensor) -> Tensor:
    """Return logits [N, V] from hidden states [N, D] by the part of the model after its backbone."""
    base = unwrap(model)
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    backbone = base.base_model
    own = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden[None])
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        del backbone.forward
        if own is not None:
            backbone.forward = own
    return cast(Tensor, logits).squeeze(0)


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return logits [N, V] at the positions that predict the answer tokens, in the model's dtype."""
    with _laid_out(batch, batch.index), head_on(model, batch.index):
        logits = _run(model, batch).logits
    return cast(Tensor, logits).squeeze(0)  # not [0]: the derivative of squeeze is a view


def read(model: nn.Module, batch: Batch, requests: Sequence[ForwardRequest]) -> list[dict[str, Tensor]]:
    """Answer several requests in one pass.

    The head runs only on the positions that the requests need.

    Returns:
        For each request `logp` [N], `logits` [N, V], `hidden/<layer>` [N, D], and logits [N, V] of other
        models' states by their names, as far as requested.
    """
    batch, place = without_padding(model, batch)
    if place is not None:
        requests = [replace(each, index=place[each.index]) for each in requests]
    headed = [each for each in requests if each.logp or each.logits or each.states]
    own = [each for each in headed if each.logp or each.logits]
    if headed:  # the first call is a collective at ZeRO 3, and other processes may have other requests
        logits_are_plain(model)
    fused = bool(own) and not any(each.logits or each.states for each in headed) and head_is_plain(model)
    index = torch.cat([each.index for each in own]) if own else batch.index[:0]
    extra = [(each, name) for each in headed for name in each.states]
    deep = any(each.layers for each in requests)
    extra_logits = ExtraLogits(model, [each.states[name] for each, name in extra])
    labels = torch.cat([each.labels for each in own]) if own else batch.labels[:0]
    head = head_gives_logp(model, labels) if fused else nullcontext()
    with _laid_out(batch, index), head_on(model, index, extra_logits), head:
        output = _run(model, batch, **({"output_hidden_states": True} if deep else {}))
    answers: dict[int, dict[str, Tensor]] = {id(each): {} for each in requests}
    logits, others = extra_logits.split(output.logits, len(index)) if headed else (batch.index[:0], [])
    for (each, name), values in zip(extra, others, strict=True):
        answers[id(each)][name] = values
    sizes = [len(each.index) for each in own]
    if own and not any(each.logits for each in own):  # no need to split the logits
        computed = logits[:, 0] if fused else token_logp(logits, labels)
        for each, logp in zip(own, computed.split(sizes), strict=True):
            answers[id(each)]["logp"] = logp
    elif own:
        for each, values in zip(own, logits.split(sizes) if len(own) > 1 else [logits], strict=True):
            if each.logits:
                answers[id(each)]["logits"] = values
            if each.logp:
                answers[id(each)]["logp"] = token_logp(values, each.labels)
    for each in requests:
        for layer in each.layers:
            answers[id(each)][f"hidden/{layer}"] = output.hidden_states[layer].flatten(0, 1)[each.index]
    return [answers[id(each)] for each in requests]


@torch.no_grad()
def states(model: nn.Module, batch: Batch, index: Tensor, layer: int | None) -> Tensor:
    """Return hidden states [N, D] after a layer; None: those that enter the head."""
    seen: list[Tensor] = []
    batch, place = without_padding(model, batch)
    index = index if place is None else place[index]
    with _laid_out(batch, index[:0]), head_on(model, index[:0], watch=seen):
        output = _run(model, batch, output_hidden_states=layer is not None)
    whole = seen[0] if layer is None else output.hidden_states[layer]
    return whole.flatten(0, 1)[index]


def _run(model: nn.Module, batch: Batch, **inputs: Any) -> Any:
    """Call the model on the batch, padded or in pieces."""
    own = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    inputs = {name: value for name, value in own.items() if value is not None} | inputs
    with in_pieces(model, batch.pieces):
        return model(input_ids=batch.input_ids, use_cache=False, **inputs)


def _laid_out(batch: Batch, index: Tensor) -> AbstractContextManager[None]:
    """Set the batch's layout for the edits inside the model; one that runs in pieces has none."""
    if batch.pieces:
        return nullcontext()
    return laid_out(right_padded(batch.prompt_end, batch.widths, batch.input_ids.shape[1], index))
