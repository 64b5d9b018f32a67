"""Requests of a benchmark to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Answer(NamedTuple):
    """One answer to score. `slot` counts the answers of one example within the request, from 0.

    Without a question the answer is a plain text.
    """

    example: str
    slot: int
    question: str | None
    answer: str


class Prompt(NamedTuple):
    """One question to generate an answer to.

    `opening` is a given beginning of the answer, which the model continues; the records hold the continuation
    alone. `truth` is the true answer where a metric compares equal lengths: the records hold its first
    `max_new_tokens` tokens.
    """

    example: str
    question: str
    opening: str = ""
    truth: str | None = None


@dataclass(frozen=True)
class _OfAnswers:
    name: str
    items: tuple[Answer, ...]
    raw: bool = False

    def __post_init__(self) -> None:
        _check(self.name, [f"{item.example} (slot {item.slot})" for item in self.items])


class Likelihood(_OfAnswers):
    """Log-probabilities of given answers. `name` is a path of the records, such as `forget/perturbed`.

    With `raw` the question is the whole prompt, without the model's prompt format.
    """


class GradientNorm(_OfAnswers):
    """Gradient norms of the mean NLL of given answers, one number each; without the end token."""


@dataclass(frozen=True)
class Generation:
    """Answers of at most `max_new_tokens` tokens, the end token included: greedy at temperature 0.

    Otherwise `samples` answers of each prompt, drawn with noise that depends on `seed`, the example's id and
    the sample's number alone, so that batching and the number of processes do not change them.
    """

    name: str
    items: tuple[Prompt, ...]
    max_new_tokens: int
    raw: bool = False
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.name, [item.example for item in self.items])
        if self.max_new_tokens < 1:
            raise ValueError(f"request {self.name}: max_new_tokens={self.max_new_tokens}; it must be ≥ 1")
        if self.samples < 1 or self.temperature < 0:
            raise ValueError(
                f"request {self.name}: samples={self.samples} must be ≥ 1, temperature={self.temperature} ≥ 0"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"request {self.name}: {self.samples} samples need a temperature above 0")


Request: TypeAlias = Likelihood | GradientNorm | Generation


def _check(name: str, keys: Sequence[str]) -> None:
    if not keys:
        raise ValueError(f"request {name} has no items: leave it out")
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"request {name} has example {key} twice: example ids must be unique")
        seen.add(key)
