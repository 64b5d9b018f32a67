"""How little of an answer a model needs to complete it: the prefix strength of the G-effect (2502.19301).

The strength of an answer is 1 − (m − l)/(r − l), m the length of the shortest prefix after which greedy
decoding completes it, l and r where it begins and ends: 1, the question is enough; 0, not even the last
token follows. `exact`: the rest, word for word; `perturb`: the same after the question in other words;
`similar`: at least half of the rest in common with it.

With `strict` a text is the model's own prompt and answer, l is where the answer begins, the end token does
not count, and a completion has the full length. Then `exact` and `perturb` need one pass instead of a search
(`eval.metrics.prefix.shortest_exact`), and `exact` equals the extraction strength. `similar` is searched, all
examples together at each step.

Without `strict` it is the released code's: `### Question: …` without the model's prompt format, l the tokens
of the bare question, which lie inside the template, at most 200 tokens in all, decoded and tokenised again
before they are compared, and compared as far as they go. So a model that stops at once completes everything
and has a strength of 1. (The code pads a batch on the left, and the padding counts in the 200 tokens; here it
does not. It samples 50 examples of a set: eval.limit=50 takes the first.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import numpy as np
from pydantic import model_validator

from eval.benchmark import Better, Metric, Result, Role, Sets, question_of
from eval.collection.live_model import Live
from eval.metrics.likelihood import aggregate, of_numbers
from eval.metrics.prefix import Mode, completes, prefix_strength, shortest_exact, shortest_prefixes
from unlearn.config import Section
from unlearn.data.example import Example
from unlearn.data.prompts import DataError

SETS: Mapping[str, Role] = {"forget_eval": "forget", "retain_eval": "retain"}
_TEXTS = {
    "exact": "share of the answer that greedy decoding completes after what is before",
    "perturb": "the same after the question in other words",
    "similar": "the same where half of the rest in common with it is enough",
}
METRICS = {
    f"prefix/{name}/{mode}": Metric(f"prefix strength: {text}", better, level=level)
    for name, better, level in (("forget", Better.FORGOTTEN_IF_LOWER, 2), ("retain", Better.HIGHER, 3))
    for mode, text in _TEXTS.items()
}
_LENGTH = 200  # tokens of the released code's generations, the prompt included
_Asked: TypeAlias = list[tuple[str, str]]


class Options(Section):
    """Options of the benchmark.

    - `modes`: what completing means, of exact, perturb and similar.
    - `strict`: a completion must have the full length; false: the released code's texts and comparison.
    """

    modes: tuple[Mode, ...] = get_args(Mode)
    strict: bool = True

    @model_validator(mode="after")
    def _fit(self) -> Options:
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ValueError(
                f"modes={list(self.modes)}: name each of {', '.join(get_args(Mode))} at most once"
            )
        return self


@dataclass(frozen=True)
class Text:
    """A text in tokens, and where a search begins; its end token is left out."""

    ids: Sequence[int]
    left: int

    @property
    def right(self) -> int:
        return len(self.ids)


def check(options: Options) -> list[str]:
    return []


def identity(options: Options) -> dict[str, Any]:
    return {}


def measure(live: Live, sets: Sets, options: Options) -> Result:
    """Return `prefix/<set>/<mode>`; perturb only of a set that has questions in other words."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for name, examples in sets.items():
        columns: dict[str, np.ndarray] = {}
        for mode in options.modes:
            chosen, asked = _asked(examples, mode)
            if not chosen:
                continue
            if options.strict:
                _, refused = live.encoder.possible_pairs(asked)
                if len(refused) == len(asked):
                    raise DataError(refused[0])
                problems += [f"{name}/{mode}, {examples[chosen[k]].id}: {x}" for k, x in refused.items()]
                chosen = [i for k, i in enumerate(chosen) if k not in refused]
                asked = [pair for k, pair in enumerate(asked) if k not in refused]
            values = np.full(len(examples), math.nan)
            values[chosen] = _strengths(live, asked, mode, options.strict, f"{name}/{mode}")
            columns[mode] = values
            metrics |= aggregate(f"prefix/{name}/{mode}", values)
        rows += [
            {"set": name, "id": example.id} | {mode: float(values[i]) for mode, values in columns.items()}
            for i, example in enumerate(examples)
        ]
    return Result(metrics, rows, problems)


def _asked(examples: Sequence[Example], mode: Mode) -> tuple[list[int], _Asked]:
    """Return the examples of a mode, by their numbers, and questions with true answers."""
    questions = [question_of(example, "prefix") for example in examples]
    if mode == "perturb":
        others = [example.paraphrased_question for example in examples]
        chosen = [i for i, question in enumerate(others) if question is not None]
        return chosen, [(str(others[i]), examples[i].answer) for i in chosen]
    return list(range(len(examples))), [(q, e.answer) for q, e in zip(questions, examples, strict=True)]


def _strengths(live: Live, asked: _Asked, mode: Mode, strict: bool, label: str) -> list[float]:
    texts, shortest = (_strict if strict else _released)(live, asked, mode, label)
    return [prefix_strength(text.left, m, text.right) for text, m in zip(texts, shortest, strict=True)]


def _strict(live: Live, asked: _Asked, mode: Mode, label: str) -> tuple[list[Text], Sequence[float]]:
    """Return the texts in the model's prompt format and their shortest prefixes, NaN where it gives NaN."""
    sequences = live.encoder.pairs(asked)
    texts = [Text(s.ids[: len(s.ids) - s.ended].tolist(), s.answer_start) for s in sequences]
    if mode == "similar":
        return texts, _searched(texts, lambda tried: _continued(live, texts, tried, label))
    columns = live.read(sequences, label=label)
    shortest = [
        shortest_exact(row[: text.right - text.left], text.left)
        for text, row in zip(texts, columns["correct"], strict=True)
    ]
    return texts, of_numbers(np.array(shortest), columns["logp"]).tolist()


def _continued(live: Live, texts: Sequence[Text], tried: Mapping[int, int], label: str) -> dict[int, bool]:
    """Return whether greedy decoding after these prefixes has half of each text's rest in common with it."""
    prompts = [texts[i].ids[:m] for i, m in tried.items()]
    longest = max(texts[i].right - m for i, m in tried.items())
    answers = live.answers(prompts, max_new_tokens=longest, label=label)
    return {
        i: completes(answer, texts[i].ids[m:], "similar")
        for (i, m), answer in zip(tried.items(), answers, strict=True)
    }


def _searched(texts: Sequence[Text], holds: Callable[[dict[int, int]], dict[int, bool]]) -> list[int]:
    return shortest_prefixes([text.left for text in texts], [text.right for text in texts], holds)


# -- the released code -----------------------------------------------------------------------------------


def _released(live: Live, asked: _Asked, mode: Mode, label: str) -> tuple[list[Text], list[int]]:
    tokenizer = live.encoder.tokenizer

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def plain(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    texts = [
        Text(tokens(f"### Question: {question}\n ### Answer: {answer}"), len(tokens(question)))
        for question, answer in asked
    ]

    def holds(tried: dict[int, int]) -> dict[int, bool]:
        prompts = {i: tokens(plain(texts[i].ids[:m])) for i, m in tried.items()}
        generated: dict[int, list[int]] = {i: [] for i in prompts}
        room = {i: _LENGTH - len(prompt) for i, prompt in prompts.items() if len(prompt) < _LENGTH}
        if room:
            answers = live.answers(
                [prompts[i] for i in room], max_new_tokens=max(room.values()), label=label
            )  # fmt: skip
            generated |= {i: answer[: room[i]] for i, answer in zip(room, answers, strict=True)}
        results = {}
        for i, m in tried.items():
            again = tokens(plain([*prompts[i], *generated[i]]))
            results[i] = completes(again[m:], texts[i].ids[m:], mode, strict=False)
        return results

    return texts, _searched(texts, holds)
