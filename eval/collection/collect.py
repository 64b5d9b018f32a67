"""Compute the records of requests and save them. The only part of an evaluation that needs the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from eval.collection.known_answers import Key, beginnings, with_prompt
from eval.collection.live_model import Live
from eval.collection.portions import (
    portion_key,
    portions_folder,
    portions_of,
    read_portion,
    read_texts,
    save_portion,
)
from eval.collection.ragged import Ragged
from eval.collection.records import (
    TOKEN_COLUMNS,
    AnyRecords,
    GenerationRecords,
    LikelihoodRecords,
    NormRecords,
    is_current,
    request_key,
    write_records,
)
from eval.collection.requests import Answer, Generation, GradientNorm, Likelihood, Request
from unlearn.data.tokenization import DataError, TokenSequence
from unlearn.errors import shortened
from unlearn.files import read_json, write_json
from unlearn.passes.generate import takes_the_likeliest
from unlearn.passes.gumbel_sampling import sampling

# A pass is saved in portions of so many forwards or rounds per process; a killed process loses one portion.
_FORWARDS, _ROUNDS = 32, 4


def collect(live: Live, requests: Sequence[Request]) -> None:
    """Write the records of all requests to `live.directory/records`; current ones are kept.

    A pair of question and answer is computed once, even if several requests contain it. The directory belongs
    to one model: records of another model in it count as this model's. What cannot be computed (an empty
    answer, a prompt that fills the context) is recorded as a problem of its example. A collective.
    """
    # The main process decides: file systems may differ between nodes.
    flags = live.world.on_main(lambda: _outdated(live, requests))
    todo = [request for request, outdated in zip(requests, flags, strict=True) if outdated]
    passes = _Passes(live)
    passes.answers([request for request in todo if isinstance(request, Likelihood)], passes.read)
    passes.answers([request for request in todo if isinstance(request, GradientNorm)], passes.norms)
    generations = [request for request in todo if isinstance(request, Generation)]
    known = live.world.on_main(lambda: _known(live, requests, generations))
    passes.generations(generations, known)
    if live.world.main:
        shutil.rmtree(portions_folder(live.directory), ignore_errors=True)


def _outdated(live: Live, requests: Sequence[Request]) -> list[bool]:
    """Flag the requests to compute: those without current records, and those that an interrupted collection
    began in the same pass. Batches are then the same as without the interruption, and so are the last bits
    of the numbers.
    """
    begun = portions_folder(live.directory) / "begun.json"
    try:
        before = set(read_json(begun)["requests"])
    except (OSError, ValueError, KeyError, TypeError):
        before = set()
    keys = [request_key(request, live.encoder) for request in requests]
    stale = [not is_current(live.directory, request, live.encoder) for request in requests]
    passes = [_Kind.of(r) if isinstance(r, Generation) else type(r) for r in requests]
    cut = {kind for kind, is_stale in zip(passes, stale, strict=True) if is_stale}
    flags = [
        is_stale or (kind in cut and key in before)
        for is_stale, kind, key in zip(stale, passes, keys, strict=True)
    ]
    if any(flags):
        write_json(begun, {"requests": sorted(before | {k for k, f in zip(keys, flags, strict=True) if f})})
    return flags


@dataclass(frozen=True)
class _Passes:
    live: Live

    # -- given answers ---------------------------------------------------------------------------------

    def answers(
        self,
        requests: Sequence[Likelihood] | Sequence[GradientNorm],
        compute: Callable[[list[TokenSequence]], dict[str, Ragged]],
    ) -> None:
        """Compute all requests in one pass and write their records."""
        keys = [(request.raw, i.question, i.answer) for request in requests for i in request.items]
        number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        sequences, problems = self._encoded(list(number))
        computed = [n for n, sequence in enumerate(sequences) if sequence is not None]
        results = compute([sequence for sequence in sequences if sequence is not None])
        if not self.live.world.main:
            return
        row = np.full(len(sequences), len(computed))  # the last row is empty, for sequences with a problem
        row[computed] = np.arange(len(computed))
        columns = {name: _with_empty(values) for name, values in results.items()}
        for request in requests:
            at = np.array([number[request.raw, i.question, i.answer] for i in request.items])
            values_of = {name: values.take(row[at]) for name, values in columns.items()}
            problem = [problems.get(n) for n in at.tolist()]
            ended = np.array([bool(s is not None and s.ended) for s in (sequences[n] for n in at)])
            records = _answer_records(request.items, problem, values_of, ended)
            write_records(self.live.directory, request, self.live.encoder, records)

    def read(self, sequences: list[TokenSequence]) -> dict[str, Ragged]:
        return self._in_portions(sequences, self.live.read, TOKEN_COLUMNS)

    def norms(self, sequences: list[TokenSequence]) -> dict[str, Ragged]:
        """Compute gradient norms without the end token, as the published attack does: it is not memorised."""
        sequences = [
            replace(s, ids=s.ids[:-1], ended=False) if s.ended and s.answer_length > 1 else s
            for s in sequences
        ]

        def compute(part: list[TokenSequence], *, label: str) -> dict[str, Ragged]:
            values = self.live.norms(part, label=label)
            return {"norm": Ragged.cut(values, np.ones(len(values), dtype=np.int64))}

        return self._in_portions(sequences, compute, ("norm",))

    def _in_portions(
        self, sequences: list[TokenSequence], compute: Callable[..., dict[str, Ragged]], names: Sequence[str]
    ) -> dict[str, Ragged]:
        """Compute portions of the sequences; portions that an interrupted process saved are read instead."""
        portions = list(portions_of(sequences, _FORWARDS * self.live.world.size * self.live.max_tokens))
        results: list[dict[str, Ragged]] = []
        for number, portion in enumerate(portions, start=1):
            part = [sequences[i] for i in portion]
            file = portions_folder(self.live.directory) / f"{portion_key(names, part)}.npz"
            label = f"{'answers' if 'logp' in names else 'gradients'} {number}/{len(portions)}"
            known = self.live.world.on_main(partial(read_portion, file, names))
            if known is None:
                known = compute(part, label=label)
                if self.live.world.main and len(portions) > 1:
                    save_portion(file, known)
            results.append(known)
        back = np.argsort([i for portion in portions for i in portion])
        return {name: Ragged.joined([part[name] for part in results]).take(back) for name in names}

    def _encoded(
        self, keys: Sequence[tuple[bool, str | None, str]]
    ) -> tuple[list[TokenSequence | None], dict[int, str]]:
        """Encode the keys: a sequence each, or None and a problem by the key's number."""
        sequences: list[TokenSequence | None] = [None] * len(keys)
        problems: dict[int, str] = {}
        for raw in (False, True):
            numbers = [n for n, key in enumerate(keys) if key[0] is raw]
            encoder = with_prompt(self.live.encoder, raw)
            encoded, failed = encoder.possible_pairs([keys[n][1:] for n in numbers])
            problems |= {numbers[k]: problem for k, problem in failed.items()}
            for n, sequence in zip(numbers, encoded, strict=True):
                sequences[n] = sequence
        if keys and len(problems) == len(keys):
            raise DataError(problems[0])
        return sequences, problems

    # -- generated answers -----------------------------------------------------------------------------

    def generations(self, requests: Sequence[Generation], known: Mapping[Key, list[int]]) -> None:
        """Generate for requests of one kind together, each prompt once, and write their records.

        `known` has prompts with the beginning of their greedy answer.
        """
        kinds: dict[_Kind, list[Generation]] = {}
        for request in requests:
            kinds.setdefault(_Kind.of(request), []).append(request)
        for kind, alike in kinds.items():
            unique = dict.fromkeys(key for request in alike for key in _keys(request))
            label = " ".join(request.name for request in alike)
            texts, problems = self._generated(kind, list(unique), label, known)
            for request in alike if self.live.world.main else ():
                keys = _keys(request)
                items = [item for item in request.items for _ in range(request.samples)]
                records = GenerationRecords(
                    example=[item.example for item in items],
                    sample=np.tile(np.arange(request.samples), len(request.items)),
                    problem=[problems.get(key) for key in keys],
                    text=[texts.get(key) for key in keys],
                    truth=[self._cut(item.truth, kind.limit) for item in items],
                )
                write_records(self.live.directory, request, self.live.encoder, records)

    def _generated(
        self, kind: _Kind, keys: list[_Key], label: str, known: Mapping[Key, list[int]]
    ) -> tuple[dict[_Key, str], dict[_Key, str]]:
        """Return the text of each key, and the problems of keys without one."""
        live = self.live
        encoder = with_prompt(live.encoder, kind.raw)
        prompts = encoder.prompts([key.question for key in keys], [key.opening for key in keys])
        room = [
            kind.limit if live.context is None else min(kind.limit, live.context - len(p)) for p in prompts
        ]
        begun = [self._begun(kind, key, p, known) for key, p in zip(keys, prompts, strict=True)]
        texts: dict[_Key, str] = {}
        for size in sorted({tokens for tokens in room if tokens > 0}, reverse=True):
            numbers = [n for n, tokens in enumerate(room) if tokens == size]
            generated = self._texts(
                [prompts[n] for n in numbers], [begun[n] for n in numbers], [keys[n] for n in numbers],
                size, kind, label,
            )  # fmt: skip
            texts |= {keys[n]: text for n, text in zip(numbers, generated, strict=True)}
        problems = {
            key: f"the prompt alone has {len(p)} tokens and fills the model's context of {live.context}"
            for key, p, tokens in zip(keys, prompts, room, strict=True)
            if tokens <= 0
        }
        return texts, problems

    def _texts(
        self,
        prompts: list[list[int]],
        begun: list[list[int]],
        keys: list[_Key],
        limit: int,
        kind: _Kind,
        label: str,
    ) -> list[str]:
        live = self.live
        size = _ROUNDS * live.world.size * live.max_rows
        order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
        portions = [order[i : i + size] for i in range(0, len(order), size)]
        texts = [""] * len(prompts)
        name = shortened(label, 40)
        for number, portion in enumerate(portions, start=1):
            part = [prompts[n] for n in portion]
            named = [repr(keys[n]) for n in portion]
            file = portions_folder(live.directory) / f"{portion_key((limit, kind, *named), ())}.json"
            generated = live.world.on_main(partial(read_texts, file))
            if generated is None:
                noise = None
                if kind.temperature:
                    noise = sampling([keys[n].noise for n in portion], kind.temperature)
                counted = f"{name} {number}/{len(portions)}" if len(portions) > 1 else name
                tokens = live.answers(
                    part, [begun[n] for n in portion], max_new_tokens=limit, label=counted, perturb=noise
                )
                decode = live.encoder.tokenizer.decode
                generated = [str(decode(ids, skip_special_tokens=True)).strip() for ids in tokens]
                if live.world.main:
                    write_json(file, {"texts": generated})
            for n, text in zip(portion, generated, strict=True):
                texts[n] = text
        return texts

    def _begun(self, kind: _Kind, key: _Key, prompt: list[int], known: Mapping[Key, list[int]]) -> list[int]:
        """Return the known beginning of an answer; none if the context may be too short to use it.

        A batch decodes as many tokens as its shortest answer needs: up to the limit, after what is known.
        """
        tokens = [] if key.opening or kind.temperature else known.get((kind.raw, key.question), [])
        fits = self.live.context is None or len(tokens) + kind.limit <= self.live.context
        return tokens[len(prompt) :] if fits and tokens[: len(prompt)] == prompt else []

    def _cut(self, truth: str | None, limit: int) -> str | None:
        if truth is None:
            return None
        tokenizer = self.live.encoder.tokenizer
        return str(tokenizer.decode(tokenizer(truth)["input_ids"][:limit], skip_special_tokens=True)).strip()


class _Kind(NamedTuple):
    """The settings that prompts share which are generated together."""

    raw: bool
    limit: int
    temperature: float

    @classmethod
    def of(cls, request: Generation) -> _Kind:
        return cls(request.raw, request.max_new_tokens, request.temperature)


class _Key(NamedTuple):
    """What determines a generated text within a kind; `sample` is None where decoding is greedy."""

    question: str
    opening: str
    sample: tuple[int, str, int] | None

    @property
    def noise(self) -> bytes:
        return repr(self.sample).encode()


def _keys(request: Generation) -> list[_Key]:
    return [
        _Key(i.question, i.opening, (request.seed, i.example, k) if request.temperature else None)
        for i in request.items
        for k in range(request.samples)
    ]


def _known(live: Live, requests: Sequence[Request], todo: Sequence[Generation]) -> dict[Key, list[int]]:
    if not todo or not takes_the_likeliest(live.model):
        return {}
    scored = [request for request in requests if isinstance(request, Likelihood)]
    return beginnings(live.directory, [*scored, *todo], live.encoder)


def _answer_records(
    items: Sequence[Answer], problem: list[str | None], columns: dict[str, Ragged], ended: np.ndarray
) -> AnyRecords:
    example = [item.example for item in items]
    slot = np.array([item.slot for item in items], dtype=np.int32)
    if "norm" in columns:
        return NormRecords(example, slot, problem, columns["norm"].mean())
    return LikelihoodRecords(example, slot, problem, **columns, ended=ended)


def _with_empty(values: Ragged) -> Ragged:
    """Add an empty row at the end."""
    return Ragged(values.values, np.append(values.offsets, values.offsets[-1]))
