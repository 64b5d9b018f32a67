"""Compute the records of requests and save them. The only part of an evaluation that needs the model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from eval.collection.live_model import Live
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
from eval.collection.shared_prompts import rows_of
from unlearn.data.tokenization import DataError, Encoder, PromptFormat, TokenSequence
from unlearn.errors import shortened
from unlearn.files import read_json, replacing, write_json
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
    passes.generations([request for request in todo if isinstance(request, Generation)])
    if live.world.main:
        shutil.rmtree(_parts(live.directory), ignore_errors=True)


def _outdated(live: Live, requests: Sequence[Request]) -> list[bool]:
    """Flag the requests to compute: those without current records, and those that an interrupted collection
    began in the same pass. Batches are then the same as without the interruption, and so are the last bits
    of the numbers.
    """
    begun = _parts(live.directory) / "begun.json"
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
        portions = list(_portions(sequences, _FORWARDS * self.live.world.size * self.live.max_tokens))
        results: list[dict[str, Ragged]] = []
        for number, portion in enumerate(portions, start=1):
            part = [sequences[i] for i in portion]
            file = _parts(self.live.directory) / f"{_digest(names, part)}.npz"
            label = f"{'answers' if 'logp' in names else 'gradients'} {number}/{len(portions)}"
            known = self.live.world.on_main(partial(_load, file, names))
            if known is None:
                known = compute(part, label=label)
                if self.live.world.main and len(portions) > 1:
                    _save(file, known)
            results.append(known)
        back = np.argsort([i for portion in portions for i in portion])
        return {name: _joined([part[name] for part in results]).take(back) for name in names}

    def _encoded(
        self, keys: Sequence[tuple[bool, str | None, str]]
    ) -> tuple[list[TokenSequence | None], dict[int, str]]:
        """Encode the keys: a sequence each, or None and a problem by the key's number."""
        sequences: list[TokenSequence | None] = [None] * len(keys)
        problems: dict[int, str] = {}
        for raw in (False, True):
            numbers = [n for n, key in enumerate(keys) if key[0] is raw]
            encoder = _encoder(self.live.encoder, raw)
            try:
                encoded = encoder.pairs([keys[n][1:] for n in numbers])
            except DataError:  # encode one by one, to learn which of them fail
                encoded = []
            for k, n in enumerate(numbers):
                try:
                    sequences[n] = encoded[k] if encoded else encoder.pairs([keys[n][1:]])[0]
                except DataError as error:
                    problems[n] = str(error)
        if keys and len(problems) == len(keys):
            raise DataError(problems[0])
        return sequences, problems

    # -- generated answers -----------------------------------------------------------------------------

    def generations(self, requests: Sequence[Generation]) -> None:
        """Generate for requests of one kind together, each prompt once, and write their records."""
        kinds: dict[_Kind, list[Generation]] = {}
        for request in requests:
            kinds.setdefault(_Kind.of(request), []).append(request)
        for kind, alike in kinds.items():
            unique = dict.fromkeys(key for request in alike for key in _keys(request))
            texts, problems = self._generated(kind, list(unique), " ".join(request.name for request in alike))
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
        self, kind: _Kind, keys: list[_Key], label: str
    ) -> tuple[dict[_Key, str], dict[_Key, str]]:
        """Return the text of each key, and the problems of keys without one."""
        live = self.live
        encoder = _encoder(live.encoder, kind.raw)
        prompts = encoder.prompts([key.question for key in keys], [key.opening for key in keys])
        room = [
            kind.limit if live.context is None else min(kind.limit, live.context - len(p)) for p in prompts
        ]
        texts: dict[_Key, str] = {}
        for size in sorted({tokens for tokens in room if tokens > 0}, reverse=True):
            numbers = [n for n, tokens in enumerate(room) if tokens == size]
            generated = self._texts(
                [prompts[n] for n in numbers], [keys[n] for n in numbers], size, kind, label
            )
            texts |= {keys[n]: text for n, text in zip(numbers, generated, strict=True)}
        problems = {
            key: f"the prompt alone has {len(p)} tokens and fills the model's context of {live.context}"
            for key, p, tokens in zip(keys, prompts, room, strict=True)
            if tokens <= 0
        }
        return texts, problems

    def _texts(
        self, prompts: list[list[int]], keys: list[_Key], limit: int, kind: _Kind, label: str
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
            file = _parts(live.directory) / f"{_digest((limit, kind, *named), ())}.json"
            generated = live.world.on_main(partial(_texts_of, file))
            if generated is None:
                noise = None
                if kind.temperature:
                    noise = sampling([keys[n].noise for n in portion], kind.temperature)
                counted = f"{name} {number}/{len(portions)}" if len(portions) > 1 else name
                tokens = live.answers(part, max_new_tokens=limit, label=counted, perturb=noise)
                decode = live.encoder.tokenizer.decode
                generated = [str(decode(ids, skip_special_tokens=True)).strip() for ids in tokens]
                if live.world.main:
                    write_json(file, {"texts": generated})
            for n, text in zip(portion, generated, strict=True):
                texts[n] = text
        return texts

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


def _encoder(encoder: Encoder, raw: bool) -> Encoder:
    return replace(encoder, format=PromptFormat("{question}", end=encoder.format.end)) if raw else encoder


def _answer_records(
    items: Sequence[Answer], problem: list[str | None], columns: dict[str, Ragged], ended: np.ndarray
) -> AnyRecords:
    example = [item.example for item in items]
    slot = np.array([item.slot for item in items], dtype=np.int32)
    if "norm" in columns:
        return NormRecords(example, slot, problem, columns["norm"].mean())
    return LikelihoodRecords(example, slot, problem, **columns, ended=ended)


def _portions(sequences: Sequence[TokenSequence], tokens: int) -> Iterator[list[int]]:
    """Split the sequences into portions (by number), with equal prompts and similar lengths together."""
    rows = sorted(rows_of(sequences, shared=True), key=lambda row: -row.width)
    part: list[int] = []
    size = 0
    for row in rows:
        if part and size + row.width > tokens:
            yield part
            part, size = [], 0
        part.extend(row.members)
        size += row.width
    if part:
        yield part


def _parts(directory: Path) -> Path:
    return directory / "records" / ".parts"


def _digest(names: Sequence[Any], sequences: Sequence[TokenSequence]) -> str:
    digest = hashlib.sha256(json.dumps([str(name) for name in names]).encode())
    for sequence in sequences:
        digest.update(np.array([len(sequence.ids), sequence.answer_start]).tobytes())
        digest.update(sequence.ids.tobytes())
    return digest.hexdigest()[:24]


def _save(file: Path, columns: dict[str, Ragged]) -> None:
    arrays = {
        f"{name}/{part}": getattr(r, part) for name, r in columns.items() for part in ("values", "offsets")
    }
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def _load(file: Path, names: Sequence[str]) -> dict[str, Ragged] | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"]) for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # absent, or cut short
        return None


def _texts_of(file: Path) -> list[str] | None:
    try:
        return [str(text) for text in read_json(file)["texts"]]
    except (OSError, ValueError, KeyError):
        return None


def _with_empty(values: Ragged) -> Ragged:
    return Ragged(values.values, np.append(values.offsets, values.offsets[-1]))


def _joined(parts: Sequence[Ragged]) -> Ragged:
    if not parts:
        return Ragged.of([])
    return Ragged.cut(np.concatenate([p.values for p in parts]), np.concatenate([p.lengths for p in parts]))
