"""The output head of a causal model: on chosen positions only, fused with log-softmax, of several models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unlearn.passes.head_logp import head_logp
from unlearn.passes.prompt_layout import all_prompt, laid_out

_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""By model, whether it returns the output of its head unchanged."""


@dataclass(frozen=True)
class Head:
    """A frozen output head, which computes a model's logits from its cached hidden states."""

    weight: Tensor
    bias: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Head:
        return Head(self.weight.to(device, dtype), None if self.bias is None else self.bias.to(device, dtype))

    def __call__(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def logits_are_plain(model: nn.Module) -> bool:
    """Return whether the model returns the output of its head unchanged: some families cap or scale it.

    The first call for a model is a forward of one token (a collective where the model's calls are).
    """
    inner = unwrap(model)
    if inner not in _PLAIN:
        outputs: list[tuple[Tensor, int]] = []
        handle = inner.get_output_embeddings().register_forward_hook(
            lambda _, __, out: outputs.append((out, out._version))
        )
        ids = torch.zeros(1, 1, dtype=torch.long, device=next(inner.parameters()).device)
        try:
            with torch.no_grad(), laid_out(all_prompt(ids)):
                logits = inner(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        out, version = outputs[0]
        _PLAIN[inner] = logits.data_ptr() == out.data_ptr() and out._version == version
    return _PLAIN[inner]


def head_is_plain(model: nn.Module) -> bool:
    """Return whether logits are hidden · weightᵀ + bias of a linear layer, with nothing else done to them."""
    inner = unwrap(model)
    linear = type(inner.get_output_embeddings()) is nn.Linear
    return linear and not hasattr(inner, "interventions") and logits_are_plain(model)


@contextmanager
def head_gives_logp(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """Let the head return log-probabilities of the labels [N] at its N positions, [1, N, 1], not logits.

    The head is still called as a module: ZeRO 3 gathers its weights in hooks.
    """
    head = unwrap(model).get_output_embeddings()
    former = head.__dict__.get("forward")

    def forward(hidden: Tensor) -> Tensor:
        return head_logp(hidden[0], head.weight, head.bias, labels)[None, :, None]

    head.__dict__["forward"] = forward
    try:
        yield
    finally:
        del head.__dict__["forward"]
        if former is not None:
            head.__dict__["forward"] = former


class ExtraLogits:
    """Logits of other models' states, with everything that this model does to logits after its head.

    Some families cap or scale logits there, so the others' logits are appended to the output of the head.
    Appending copies both; it is left out for a model that does nothing after its head.
    """

    def __init__(self, model: nn.Module, states: Sequence[tuple[Head, Tensor]] = ()) -> None:
        self._states = states
        self.appended = bool(states) and not logits_are_plain(model)
        """Whether the others' logits must be appended to the output of the head."""

    def append(self, logits: Tensor) -> Tensor:
        """Return the head's output [1, N, V] followed by the others' logits."""
        return torch.cat([logits, *(each.unsqueeze(0) for each in self._computed(logits.dtype))], dim=1)

    def split(self, logits: Tensor, rows: int) -> tuple[Tensor, list[Tensor]]:
        """Split the model's output into its own `rows` of logits and those of the others."""
        if not self.appended:
            return logits.squeeze(0), self._computed(logits.dtype)
        own, *others = logits.squeeze(0).split([rows, *(len(hidden) for _, hidden in self._states)])
        return own, others

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
    """Run the head only on these positions [N] of the flattened batch: logits [1, N, V]; None: on all.

    The head's whole input is appended to `watch`.
    """

    # A hook on the head's input works for every causal model of transformers and keeps the operations of a
    # family after the head.
    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        if watch is not None:
            watch.append(hidden)
        if index is None:
            return args
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, index).unsqueeze(0), *args[1:])

    head = unwrap(model).get_output_embeddings()
    handles = [head.register_forward_pre_hook(select)]
    if extra is not None and extra.appended:
        handles.append(head.register_forward_hook(lambda _, __, logits: extra.append(logits)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unwrap(model: nn.Module) -> Any:
    """Return the transformers (or PEFT) model inside a DeepSpeed engine, or the model itself."""
    return getattr(model, "module", model)
