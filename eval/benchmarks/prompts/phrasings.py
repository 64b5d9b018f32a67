"""Ways of asking: the question alone, in other words, after other turns, in another language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.benchmark import BenchmarkError
from eval.collection.requests import Answer, Prompt
from eval.metrics.words import word_spans
from unlearn.data.columns import optional_text, text_of
from unlearn.data.example import Example
from unlearn.data.prompts import Conversation
from unlearn.data.readers import read_rows
from unlearn.data.templates import filled
from unlearn.errors import listed
from unlearn.paths import user_path


@dataclass(frozen=True)
class Asked:
    """A question, the given beginning of its answer, and the rest."""

    example: Example
    question: str
    opening: str
    rest: str


@dataclass(frozen=True)
class Phrasing:
    """One way of asking. `kind` names the metrics it counts in, `name` its records."""

    kind: str
    name: str
    asked: tuple[Asked, ...]

    @property
    def generation(self) -> tuple[Prompt, ...]:
        return tuple(Prompt(a.example.id, a.question, a.opening) for a in self.asked)

    @property
    def answers(self) -> tuple[Answer, ...]:
        return tuple(Answer(a.example.id, 0, a.question, a.example.answer) for a in self.asked)

    @property
    def openings(self) -> tuple[Answer, ...]:
        return tuple(Answer(a.example.id, 0, a.question, a.opening) for a in self.asked if a.opening)


def after_shots(asked: Sequence[Asked], retain: Sequence[Example], count: int, seed: int) -> list[Asked]:
    """Ask after pairs of other questions and answers, as earlier turns; the same pairs for all.

    Raises:
        BenchmarkError: there is no such pair.
    """
    pairs = [(e.question, e.answer) for e in retain if e.question is not None]
    if not pairs:
        raise BenchmarkError(
            f"eval.benchmarks.prompts.shots={count}: the dataset has no retain set with questions, whose "
            "answers would be shown; set shots=0, or dataset.retain"
        )
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:count]
    turns = [text for number in drawn for text in pairs[number]]
    return [replace(a, question=Conversation(*turns, a.question)) for a in asked]


def after_denial(asked: Sequence[Asked], denial: str, follow_up: str) -> list[Asked]:
    """Ask, let the model deny, and ask again; `{question}` in the follow-up is the question."""
    return [
        replace(a, question=Conversation(a.question, denial, filled(follow_up, question=a.question)))
        for a in asked
    ]


def translated(asked: Sequence[Asked], path: str) -> list[Asked]:
    """Ask the questions of a file: rows with `id`, `question` and perhaps `answer`, in another language.

    Without an answer the true one of the data is expected. Examples that the file lacks are left out.

    Raises:
        UserError: the file cannot be read, or a row lacks a column.
        BenchmarkError: an id is there twice, or the file has none of the examples.
    """
    label = f"eval.benchmarks.prompts.translations: {path}"
    table = read_rows(user_path(path), label)
    rows: dict[str, tuple[str, str | None]] = {}
    for number, row in enumerate(table.rows):
        where = table.where(number)
        key = text_of(row, "id", where)
        if key in rows:
            raise BenchmarkError(f"{where}: the id {key} is there twice; one file has one language")
        rows[key] = text_of(row, "question", where), optional_text(row, "answer", where)
    chosen = []
    for a in asked:
        if a.example.id in rows:
            question, answer = rows[a.example.id]
            example = a.example if answer is None else replace(a.example, answer=answer)
            chosen.append(Asked(example, question, "", example.answer))
    if not chosen:
        examples = listed([a.example.id for a in asked], 2)
        raise BenchmarkError(f"{label}: none of its ids is one of an example ({examples})")
    return chosen


def opened(answer: str, words: int) -> tuple[str, str] | None:
    """Split an answer after its first words, at most half of them; None for an answer of one word."""
    spans = word_spans(answer)
    count = min(words, len(spans) // 2)
    if not count:
        return None
    return answer[: spans[count - 1][1]], answer[spans[count][0] :]
