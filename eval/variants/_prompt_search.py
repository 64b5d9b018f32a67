"""What attacks share that search for tokens or vectors after the prompt.

The forget questions are divided in two. The attack is searched on one half, with their true answers, and
scored on the other: what follows the prompt can force any text, so answers that it was searched on tell
nothing. One search serves all questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eval.benchmark import Sets, find
from eval.collection.turns import turns
from eval.variants._base import Workbench, prefixed
from unlearn.config import HardwareConfig, RunConfig
from unlearn.data.batching import Schedule, collate
from unlearn.data.example import Example
from unlearn.data.sources import available
from unlearn.data.tokenization import Encoder, TokenSequence
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.passes.forward import forward, record
from unlearn.passes.head import unwrap
from unlearn.passes.module_modes import evaluating
from unlearn.passes.out_of_memory import Bins, in_portions
from unlearn.passes.products import fast_linear_layers

LEAST_TOKENS = 4
"""A shorter run of slots could be taken for text."""


@dataclass(frozen=True)
class Halves:
    """The examples to search on, and the run's sets with the other forget questions, to score."""

    searched: list[Example]
    scored: dict[str, list[Example]]


def halves(config: RunConfig, sets: Sets, reported: Sets, name: str) -> Halves:
    """Divide the forget questions by their ids; equal questions of several sets are in the same half.

    Scored are those of `reported` in the second half, and sets without any question; an attacker has all
    questions of the first.

    Raises:
        UserError: no question is left to search on, or none to score.
    """
    forget = [key for key in forget_sets(config) if key in reported]
    asked = [example for key in forget for example in sets[key] if example.question is not None]
    first: dict[str | None, str] = {}
    for example in asked:
        first[example.question] = min(example.id, first.get(example.question, example.id))
    order = sorted(first, key=lambda question: hashlib.sha256(first[question].encode()).digest())
    half = set(order[: len(order) // 2])
    rest = {
        key: [e for e in reported[key] if e.question is not None and e.question not in half] for key in forget
    }
    if not half or not any(rest.values()):
        raise UserError(
            f"eval.variants.{name}: the forget sets have {len(order)} questions, of which no half is left to "
            "score: choose a dataset with questions, raise eval.limit, or leave this variant out"
        )
    pairs = {(e.question, e.answer): e for e in asked if e.question in half}
    scored = {key: rest.get(key) or list(rows) for key, rows in reported.items()}
    spent = [key for key in forget if not rest[key] and any(e.question is not None for e in reported[key])]
    return Halves(list(pairs.values()), {key: rows for key, rows in scored.items() if key not in spent})


def searched(bench: Workbench, name: str) -> list[list[str | None]]:
    """Return id, question and answer of the examples that are searched on."""
    divided = halves(bench.config, bench.sets, bench.reported, name)
    return [[e.id, e.question, e.answer] for e in divided.searched]


def score_rest(
    bench: Workbench, search: Search, label: str, tokens: Sequence[int], divided: Halves
) -> dict[str, float]:
    """Return `<label>/<benchmark key>` of the held-out forget questions, these tokens after each prompt."""
    metrics = bench.score(
        search.model, label, ["forget"], sets=divided.scored, encoder=bench.encoder.followed_by(tokens),
        collective_forward=search.world.collective_forward,
    )  # fmt: skip
    return prefixed(label, metrics)


def forget_sets(config: RunConfig) -> list[str]:
    """Return the sets to forget that the configured benchmarks score."""
    roles = {key: role for name in config.eval.benchmarks for key, role in find(name).SETS.items()}
    return [key for key, role in roles.items() if role == "forget"]


def search_problems(options: Any, config: RunConfig) -> list[str]:
    """Return what is wrong with the options that searches share: steps, tokens, batch, seed, opening."""
    problems = []
    if options.opening is not None and not options.opening.strip():
        problems.append(f"opening={options.opening!r}: give a text, or null for the true answers")
    if not options.steps or min(options.steps) < 1:
        problems.append(f"steps={list(options.steps)}: give one or more numbers of steps, from 1 on")
    if options.tokens < LEAST_TOKENS:
        problems.append(f"tokens={options.tokens}: give at least {LEAST_TOKENS}")
    if options.batch < 1:
        problems.append(f"batch={options.batch}: it must be above 0")
    if options.seed < 0:
        problems.append(f"seed={options.seed}: it must not be below 0")
    if config.eval.benchmarks and not set(forget_sets(config)) & set(available(config.dataset)):
        problems.append(
            f"steps: none of the benchmarks scores a forget set of dataset {config.dataset.name}: choose one "
            "that does, such as eval=prompts, or leave this variant out"
        )
    return problems


@dataclass(frozen=True)
class Search:
    """Losses of true answers after prompts that tokens follow, on a frozen model; collectives.

    The `sequences` are those of the examples without the tokens. Forwards do not depend on the number of
    processes, since a search takes steps by the signs and the order of small differences. The calls of the
    model are collectives if `world` says so.
    """

    model: nn.Module
    sequences: Sequence[TokenSequence]
    world: World
    hardware: HardwareConfig
    longest: int | None = None

    @classmethod
    def of(
        cls, bench: Workbench, model: nn.Module, examples: Sequence[Example], opening: str | None,
        collective: bool = False,
    ) -> Search:  # fmt: skip
        """Return the search on these examples' answers, or on this opening of each; the model is frozen.

        Raises:
            UserError: an example cannot be encoded.
        """
        model.requires_grad_(False)
        sequences = bench.encoder.pairs([(e.question, opening or e.answer) for e in examples])
        if opening:  # an answer does not end there
            sequences = [replace(s, ids=s.ids[:-1], ended=False) if s.ended else s for s in sequences]
        positions = bench.encoder.limits.positions
        world = bench.world.with_collective_forward(collective)
        return cls(model, sequences, world, bench.config.hardware, positions)

    @property
    def rows(self) -> list[int]:
        return list(range(len(self.sequences)))

    def batches(self, steps: int, batch: int, seed: int) -> list[list[int]]:
        """Return the rows of each step, from shuffled epochs."""
        schedule = Schedule({"forget": len(self.sequences)}, "forget", batch, seed)
        return [[row for row, _ in schedule.rows(step)["forget"]] for step in range(steps)]

    def loss(self, tokens: Sequence[int]) -> float:
        """Return the mean NLL of all answer tokens after prompts with these tokens."""
        return float(self.losses(np.array([tokens]), self.rows)[0])

    def losses(self, candidates: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """Return the mean NLL of the rows' answer tokens after each of the candidates [C, k], [C]."""
        tried = [self._with(row, tokens) for tokens in candidates for row in rows]

        def nll(sequences: list[TokenSequence], limit: int) -> list[float]:
            read = record(self.model, collate(sequences).to(self.world.device), limit)
            return [-float(part.sum()) for part in read.logp.double().split(read.lengths.tolist())]

        with evaluating(self.model), fast_linear_layers(self.model):
            sums = self._shared(tried, "eval_tokens", self.hardware.eval_tokens, nll)
        values = np.empty(len(tried))
        for part, each in sums:
            values[part] = each
        counts = np.array([s.answer_length for s in tried]).reshape(len(candidates), -1)
        return np.asarray(values.reshape(counts.shape).sum(1) / counts.sum(1))

    def gradient(self, slots: Slots, rows: Sequence[int]) -> tuple[float, Tensor]:
        """Return the mean NLL of the rows' answer tokens, and its gradient by the slots' vectors [k, D]."""
        sequences = [self._with(row, slots.tokens) for row in rows]
        tokens = sum(s.answer_length for s in sequences)

        def backward(part: list[TokenSequence], _: int) -> tuple[float, np.ndarray]:
            vectors = slots.vectors.requires_grad_()
            loss = -forward(self.model, collate(part).to(self.world.device)).logp.sum()
            (gradient,) = torch.autograd.grad(loss, vectors)
            slots.vectors = vectors.detach()
            return float(loss.detach()), gradient.cpu().numpy()

        with evaluating(self.model), torch.enable_grad(), fast_linear_layers(self.model):
            parts = self._shared(sequences, "gradient_tokens", self.hardware.backward_tokens, backward)
        loss = sum(part[0] for _, part in parts) / tokens
        gradient = torch.from_numpy(np.sum([part[1] for _, part in parts], axis=0))
        return loss, gradient.to(slots.vectors) / tokens

    def _with(self, row: int, tokens: Sequence[int]) -> TokenSequence:
        return self.sequences[row].with_suffix(tokens, self.longest)

    def _shared(
        self, sequences: Sequence[TokenSequence], key: Any, size: int,
        compute: Callable[[list[TokenSequence], int], Any],
    ) -> list[tuple[list[int], Any]]:  # fmt: skip
        """Return `compute` of each forward's sequences with their numbers, in one order everywhere.

        `compute` also gets the limit of `turns`, in answer tokens.
        """
        world = self.world
        answers = [s.answer_length for s in sequences]

        def mine(bins: Bins) -> list[tuple[list[int], Any]]:
            parts = [part for part in bins[0] if part]
            parts += [[] for _ in range(-len(parts) % world.size)]
            shares = [parts[rank :: world.size] for rank in range(world.size)]
            computed = [
                (part, compute([sequences[i] for i in called], limit))
                for part, called, limit in turns(world, shares, answers)
            ]
            return [(part, value) for part, value in computed if part]

        widths = [len(s.ids) - 1 for s in sequences]
        collective = world.collective_forward
        computed = world.gather(
            in_portions(world, key, size, widths, mine, alike=True, collective=collective)
        )
        return sorted(computed, key=lambda pair: pair[0])


@dataclass(frozen=True)
class Begun:
    """What a search begins with: the halves, the search on the first, the token that all places start with,
    and the tokens of text [V]."""

    divided: Halves
    search: Search
    start: int
    text: np.ndarray


@contextmanager
def begin(bench: Workbench, options: Any, name: str) -> Iterator[Begun]:
    """Yield what the search of this variant begins with, while the unlearned model is held.

    Raises:
        UserError: there are too few forget questions, or the start has no token.
    """
    divided = halves(bench.config, bench.sets, bench.reported, name)
    start = _last_token(bench.encoder, options.start, f"eval.variants.{name}.start")
    with bench.held() as (model, collective):
        search = Search.of(bench, model, divided.searched, options.opening, collective)
        yield Begun(divided, search, start, plain_tokens(model, bench.encoder))


class Slots:
    """Vectors [k, D] in place of the embeddings of a run of k tokens, which no text has; a hook of a model.

    Every such run is replaced, wherever it is: in padded batches, in rows of several sequences or answers,
    and in the first call of a generation.
    """

    def __init__(self, model: nn.Module, tokens: Sequence[int], vectors: Tensor) -> None:
        self.tokens, self.vectors = tuple(tokens), vectors
        every = (each for each in model.modules() if isinstance(each, PreTrainedModel))
        # An edit may contain a second model, which gets the same vectors.
        embedding = {embeddings(model), *(each.get_input_embeddings() for each in every)}
        self._handles = [each.register_forward_hook(self._replace) for each in embedding]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _replace(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (ids, *_rest), k = inputs, len(self.tokens)
        if ids.shape[-1] < k:  # a decoding step
            return output
        rows, starts = (ids.unfold(-1, k, 1) == ids.new_tensor(self.tokens)).all(-1).nonzero(as_tuple=True)
        places = starts[:, None] + torch.arange(k, device=ids.device)
        replaced = output.clone()
        replaced[rows[:, None], places] = self.vectors.to(output.dtype)
        return replaced


def embeddings(model: nn.Module) -> nn.Module:
    """Return the module that embeds the tokens."""
    module: nn.Module = unwrap(model).get_input_embeddings()
    return module


@torch.no_grad()
def embedded(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """Return the embeddings [k, D] of tokens, fp32."""
    module = embeddings(model)
    ids = torch.tensor(list(tokens), device=next(module.parameters()).device)
    made: Tensor = module(ids[None])[0]
    return made.float()


def plain_tokens(model: nn.Module, encoder: Encoder) -> np.ndarray:
    """Return the tokens of text that the model embeds, in order: no special ones."""
    tokenizer = encoder.tokenizer
    weight = next(embeddings(model).parameters())
    (rows, *_) = getattr(weight, "ds_shape", weight.shape)  # at ZeRO 3 the whole one's
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return np.array([token for token in range(min(len(tokenizer), rows)) if token not in special])


def _last_token(encoder: Encoder, text: str, key: str) -> int:
    """Return the last token of a text, which begins a search.

    Raises:
        UserError: the text has no token.
    """
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"{key}={text!r}: this text has no token; give another")
    return int(ids[-1])
