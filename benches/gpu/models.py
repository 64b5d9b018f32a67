"""What the check on a GPU runs: made Llamas, made token sequences, and the arithmetic of a training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, LlamaConfig

from benches.geffect import ONE_B
from launch.memory.estimate import Load, Shape, read_shape
from unlearn.data.batching import count, deal
from unlearn.data.tokenization import TokenSequence
from unlearn.passes.head import unwrap
from unlearn.statistics import statistics_of
from unlearn.terms import Term
from unlearn.training.step_data import Group, Part, Plan, View, own_view, views
from unlearn.training.trainer import Trainer

QUESTION, ANSWER = (32, 96), (32, 128)  # tokens, both ends included
LONG = 512
FIRST_ID = 16  # lower ids are the special tokens of the nano tokenizer, padding among them
_LLAMA_3: dict[str, Any] = {"vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
    },
    "1b": ONE_B,
    "3b": {
        **_LLAMA_3, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "tie_word_embeddings": True,
    },
    "8b": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "tie_word_embeddings": False,
    },
    "14b": {
        **_LLAMA_3, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
        "num_attention_heads": 40, "tie_word_embeddings": False,
    },
    "32b": {
        **_LLAMA_3, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
        "num_attention_heads": 40, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Llama 3.2 of 1B and 3B, Llama 3.1 of 8B, and Llamas in the sizes of Qwen 2.5 of 14B and 32B."""


def make_model(name: str, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """Make a Llama with random weights on the device, in compute precision; nothing is written."""
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                LlamaConfig(**SHAPES[name], max_position_embeddings=2048), dtype=dtype,
                attn_implementation="sdpa",
            )  # fmt: skip
    return model


def shape_of(name: str) -> Shape:
    """Return the sizes of a model without making its weights."""
    return read_shape(make_model(name, "meta", torch.float32))


def sequences(name: str, number: int, seed: int, *, long: bool = False) -> list[TokenSequence]:
    """Return random tokens: questions and answers of random lengths, or half of `LONG` tokens each."""
    drawn = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        question = LONG // 2 if long else int(drawn.integers(*QUESTION, endpoint=True))
        answer = LONG // 2 if long else int(drawn.integers(*ANSWER, endpoint=True))
        ids = drawn.integers(FIRST_ID, SHAPES[name]["vocab_size"], question + answer)
        made.append(TokenSequence(ids, question, ended=True))
    return made


def groups(name: str, number: int, *, long: bool = False) -> dict[str, Group]:
    """Return a forget and a retain set of so many sequences each."""
    return {
        key: Group([f"{key}-{i}" for i in range(number)], Part(sequences(name, number, seed, long=long)))
        for seed, key in enumerate(("forget", "retain"))
    }


@dataclass(frozen=True)
class Step:
    """The size of a step: tokens that go through the model, floating-point operations, largest portion."""

    tokens: int
    flops: float
    load: Load


def measure_step(trainer: Trainer, number: int, tokens: int) -> Step:
    """Return the size of a step (counted from 0) in micro-batches of so many padded tokens.

    Operations are the model's (arXiv 2204.02311, appendix B): a token costs 2 for each weight of a matrix
    product forward, and 4 backward. A sequence of L tokens costs each block 2 · L² · heads · head size
    forward for causal attention, twice that backward. The head's matrix counts at the positions that the
    terms ask for. A frozen model's head is forward only. Padding and what activation checkpointing
    recomputes do not count; nor do objectives, norms and the optimizer.
    """
    shape, plan = read_shape(unwrap(trainer.engine.model)), trainer.plan(number)
    ids = [len(trainer.data.groups[u.group].sequence(u, "answers").ids) - 1 for u in plan.units]
    width = shape.heads * shape.head_dim
    block = 2 * shape.hidden * (width + shape.kv_heads * shape.head_dim) + 3 * shape.hidden * shape.inner
    flops = 6.0 * shape.layers * (block * sum(ids) + width * sum(n * n for n in ids))
    for view, own, frozen in _heads(trainer.terms):
        flops += (6 * own + 2 * frozen) * shape.hidden * shape.vocabulary * plan.counts[view, "token"]
    # A rule of separate gradients has a pass for each term.
    passes = [[term] for term in trainer.terms] if trainer.rule.separate else [trainer.terms]
    portions = [load for terms in passes for load in _portions(trainer, plan, terms, tokens)]
    return Step(sum(ids), flops, max(portions, key=lambda load: (load.tokens, load.answers)))


def _heads(terms: Sequence[Term]) -> Iterator[tuple[View, int, int]]:
    """Yield each view with the number of heads that run there: the trained model's, and frozen ones."""
    needed: dict[View, set[Any]] = {}
    for term in terms:
        needed.setdefault(own_view(term), set()).update(statistics_of(term.loss_needs))
    for view, statistics in needed.items():
        frozen = sum(each.cached and each.quantity == "logits" for each in statistics)
        yield view, int(any(each.needs_head for each in statistics)), frozen


def _portions(trainer: Trainer, plan: Plan, terms: Sequence[Term], tokens: int) -> Iterator[Load]:
    """Yield the micro-batches of a pass for these terms, which are on different groups."""
    of_group = {view.group: view for term in terms for view in views(term, term.loss_needs)}
    units = [unit for unit in plan.units if unit.group in of_group]
    widths, answers = [], []
    for unit in units:
        view, sequence = of_group[unit.group], trainer.data.groups[unit.group].sequence(unit, "answers")
        widest = plan.widths[view.part]
        widths.append(widest if view.mask == "all" else len(sequence.ids) - 1)
        answers.append(count(sequence, mask=view.mask, skip=view.skip, all_width=widest))
    for part in deal(widths, 1, max_tokens=tokens)[0]:
        longest = max(widths[i] for i in part)
        yield Load(len(part) * longest, longest, sum(answers[i] for i in part))


class Tokens:
    """Count the tokens that go through a model's blocks, padding (id 0) not among them."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self._parts.append((ids != 0).sum())  # added up at the end: reading it would stop the device

        handle = unwrap(model).get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @property
    def total(self) -> int:
        return int(sum(int(part) for part in self._parts))


class Operations(TorchDispatchMode):
    """Count the floating-point operations of matrix products and attention as they run, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs or {}, out_val=out)
        return out
