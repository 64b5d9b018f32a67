"""One pass of a model over a batch, for the answer tokens only.

The output head runs on the N positions that predict an answer token, so the [batch, length, vocabulary]
tensor of logits never exists. Right padding under causal attention needs no attention mask, which keeps
the fast attention kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from unlearn.data.batching import Batch
from unlearn.passes.prompt_layout import laid_out, right_padded
from unlearn.passes.token_logp import block_rows, blocks, token_logp

_LOGITS = 1 << 26  # logits that exist at a time where no gradient is wanted


@dataclass(frozen=True)
class AnswerLogp:
    """Log-probabilities of answer tokens: `logp` [N] in nats, fp32; `lengths` [B] cuts N into examples."""

    logp: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Head:
    """A frozen output head, which turns cached hidden states into the logits of the model they came from."""

    weight: Tensor
    bias: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Head:
        return Head(self.weight.to(device, dtype), None if self.bias is None else self.bias.to(device, dtype))

    def __call__(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class ForwardRequest:
    """What is wanted at some positions of a batch.

    `index` [N] and `labels` [N] as in `Batch`. `layers`: hidden states after these layers (0: embeddings).
    `states`: hidden states [N, D] of other models with the head of each, by the name that their logits get.
    """

    index: Tensor
    labels: Tensor
    logp: bool = False
    logits: bool = False
    layers: tuple[int, ...] = ()
    states: Mapping[str, tuple[Head, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenRecord:
    """What evaluation keeps per answer token, each [N], fp32 (`correct`: bool).

    `logp` of the token, whether it is the arg-max, and mean and variance of log p over the vocabulary
    under the model's own distribution (what Min-K++ needs, arXiv 2404.02936).
    """

    logp: Tensor
    correct: Tensor
    mean: Tensor
    variance: Tensor
    lengths: Tensor


def forward(model: nn.Module, batch: Batch) -> AnswerLogp:
    """Return log-probabilities of the answer tokens, differentiable."""
    return AnswerLogp(token_logp(answer_logits(model, batch), batch.labels), batch.lengths)


@torch.no_grad()
def record(
    model: nn.Module, batch: Batch, limit: int = 0, inputs: Mapping[str, Tensor] | None = None
) -> TokenRecord:
    """The same pass without gradients, with all that likelihood metrics need.

    Never more than a set budget of logits exists at a time. Where a call of the head is a collective, `limit`
    is the largest N of any process: it decides in how many pieces the head runs. `inputs` are further
    arguments of the model.
    """
    found = torch.empty(3, len(batch.index), device=batch.index.device)  # log p, mean, variance
    correct = torch.empty(len(batch.index), dtype=torch.bool, device=batch.index.device)
    done = 0
    for logits, labels in _in_pieces(model, batch, max(limit, len(batch.index)), inputs or {}):
        # In buffers of its own: blocks that come and go between results that stay split up the memory.
        space = torch.empty(2, block_rows(logits), logits.shape[-1], device=logits.device)
        for rows, wanted in blocks(logits, labels):
            part = slice(done, done := done + len(rows))
            block, prob = space[:, : len(rows)]
            block.copy_(rows)
            top, likeliest = block.max(-1, keepdim=True)
            total = torch.exp(block.sub_(top), out=prob).sum(-1, keepdim=True)
            prob /= total
            lost = total.log()[:, 0]
            correct[part] = likeliest[:, 0] == wanted
            found[0, part] = block.gather(-1, wanted[:, None])[:, 0] - lost
            mean = torch.linalg.vecdot(prob, block)
            found[1, part] = mean - lost
            found[2, part] = torch.linalg.vecdot(prob, block.sub_(mean[:, None]).square_())
    return TokenRecord(found[0], correct, found[1], found[2], batch.lengths)


def _in_pieces(
    model: nn.Module, batch: Batch, limit: int, inputs: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits at the batch's positions with their labels, a budget's worth at a time."""
    inner = unwrap(model)
    pieces = -(-limit * int(inner.config.get_text_config(decoder=True).vocab_size) // _LOGITS)
    if pieces <= 1 or hasattr(inner, "interventions"):  # an edit may have to know all of the positions
        yield answer_logits(model, batch, **inputs), batch.labels
        return
    head: Any = inner.get_output_embeddings()
    seen: list[Tensor] = []
    given: list[tuple[Tensor, int]] = []
    handle = head.register_forward_hook(lambda _, __, out: given.append((out, out._version)))
    with _laid_out(batch, batch.index[:0]), head_on(model, batch.index[:0], watch=seen):
        logits = model(input_ids=batch.input_ids, use_cache=False, **inputs).logits
    handle.remove()
    plain = logits is given[0][0] and logits._version == given[0][1]
    size = -(-limit // pieces)
    for start in range(0, size * pieces, size):
        hidden = seen[0].flatten(0, 1)[batch.index[start : start + size]]
        piece = head(hidden) if plain else _after_backbone(model, batch, hidden)
        yield piece, batch.labels[start : start + size]


def _after_backbone(model: nn.Module, batch: Batch, hidden: Tensor) -> Tensor:
    """Logits [N, V] of hidden states [N, D], by all that the model does after its backbone."""
    base = unwrap(model)
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    backbone = base.base_model
    own = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden[None])
    try:
        logits = model(input_ids=batch.input_ids[:1], use_cache=False).logits
    finally:
        del backbone.forward
        if own is not None:
            backbone.forward = own
    return cast(Tensor, logits).squeeze(0)


def answer_logits(model: nn.Module, batch: Batch, **inputs: Tensor) -> Tensor:
    """Logits [N, V] at the positions that predict the answer tokens, in the model's dtype."""
    with _laid_out(batch, batch.index), head_on(model, batch.index):
        logits = model(input_ids=batch.input_ids, use_cache=False, **inputs).logits
    return cast(Tensor, logits).squeeze(0)  # whose derivative is a view, where that of [0] is a copy


def read(model: nn.Module, batch: Batch, requests: Sequence[ForwardRequest]) -> list[dict[str, Tensor]]:
    """Answer several requests in one pass: `logp` [N], `logits` [N, V], `hidden/<layer>` [N, D], and logits
    [N, V] of other models' states by their names.

    Nothing else is computed: the head runs on the positions that are asked for, or on none.
    """
    headed = [each for each in requests if each.logp or each.logits or each.states]
    own = [each for each in headed if each.logp or each.logits]
    index = torch.cat([each.index for each in own]) if own else batch.index[:0]
    extra = [(each, name) for each in headed for name in each.states]
    deep = any(each.layers for each in requests)
    extra_logits = ExtraLogits([each.states[name] for each, name in extra])
    with _laid_out(batch, index), head_on(model, index, extra_logits):
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False,
            **({"output_hidden_states": True} if deep else {}),
        )  # fmt: skip
    given: dict[int, dict[str, Tensor]] = {id(each): {} for each in requests}
    logits, others = extra_logits.split(model, output.logits, len(index)) if headed else (batch.index[:0], [])
    for (each, name), values in zip(extra, others, strict=True):
        given[id(each)][name] = values
    sizes = [len(each.index) for each in own]
    if own and not any(each.logits for each in own):  # one piece: nothing is cut or glued
        labels = torch.cat([each.labels for each in own])
        for each, logp in zip(own, token_logp(logits, labels).split(sizes), strict=True):
            given[id(each)]["logp"] = logp
    elif own:
        for each, values in zip(own, logits.split(sizes) if len(own) > 1 else [logits], strict=True):
            if each.logits:
                given[id(each)]["logits"] = values
            if each.logp:
                given[id(each)]["logp"] = token_logp(values, each.labels)
    for each in requests:
        for layer in each.layers:
            given[id(each)][f"hidden/{layer}"] = output.hidden_states[layer].flatten(0, 1)[each.index]
    return [given[id(each)] for each in requests]


@torch.no_grad()
def states(model: nn.Module, batch: Batch, index: Tensor, layer: int | None) -> Tensor:
    """Hidden states [N, D] after a layer, or (None) those that enter the head."""
    seen: list[Tensor] = []
    with _laid_out(batch, index[:0]), head_on(model, index[:0], watch=seen):
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False,
            output_hidden_states=layer is not None,
        )  # fmt: skip
    whole = seen[0] if layer is None else output.hidden_states[layer]
    return whole.flatten(0, 1)[index]


_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models known to hand out what their head gave, untouched, or known not to."""


class ExtraLogits:
    """Logits of other models' states, with all that this model does to logits after its head.

    Some families cap or scale them there, so they are appended to the model's own. That copies both, and is
    left out once the model has been seen to do nothing after its head.
    """

    def __init__(self, states: Sequence[tuple[Head, Tensor]] = ()) -> None:
        self._states = states
        self._joined: Tensor | None = None
        self._version = 0

    def append(self, logits: Tensor) -> Tensor:
        """Return the head's output [1, N, V] followed by the others' logits."""
        joined = torch.cat([logits, *(each.unsqueeze(0) for each in self._computed(logits.dtype))], dim=1)
        self._joined, self._version = joined, joined._version
        return joined

    def split(self, model: nn.Module, logits: Tensor, rows: int) -> tuple[Tensor, list[Tensor]]:
        """Return the model's own `rows` of the logits that it gave, and those of the others."""
        if self._joined is None:
            return logits.squeeze(0), self._computed(logits.dtype)
        untouched = logits is self._joined and logits._version == self._version
        _PLAIN[unwrap(model)] = untouched
        own, *others = logits.squeeze(0).split([rows, *(len(hidden) for _, hidden in self._states)])
        return own, others

    def needed(self, model: nn.Module) -> bool:
        """Return whether the others have to go through what the model does after its head."""
        return bool(self._states) and not _PLAIN.get(unwrap(model), False)

    @torch.no_grad()
    def _computed(self, dtype: torch.dtype) -> list[Tensor]:
        return [head(hidden).to(dtype) for head, hidden in self._states]


@contextmanager
def head_on(
    model: nn.Module,
    index: Tensor | None,
    extra: ExtraLogits | None = None,
    watch: list[Tensor] | None = None,
) -> Iterator[None]:
    """The head runs on these positions [N] of the flattened batch only: logits [1, N, V]; None: on all.

    `watch` gets what enters the head, before positions are chosen.
    """

    # A hook on the head's input works for every causal model of transformers and keeps what a family does
    # after the head.
    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        if watch is not None:
            watch.append(hidden)
        if index is None:
            return args
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, index).unsqueeze(0), *args[1:])

    head = unwrap(model).get_output_embeddings()
    handles = [head.register_forward_pre_hook(select)]
    if extra is not None and extra.needed(model):
        handles.append(head.register_forward_hook(lambda _, __, logits: extra.append(logits)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _laid_out(batch: Batch, index: Tensor) -> AbstractContextManager[None]:
    """What the model itself is not told, and edits inside it need to know."""
    return laid_out(right_padded(batch.prompt_end, batch.widths, batch.input_ids.shape[1], index))


def unwrap(model: nn.Module) -> Any:
    """The transformers (or PEFT) model inside a DeepSpeed engine, or the model itself."""
    return getattr(model, "module", model)
