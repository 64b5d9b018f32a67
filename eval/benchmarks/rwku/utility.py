"""RWKU's five utility sets, asked as its code does (`eval_*.py`).

`general` is MMLU and `truthfulness` TruthfulQA's MC1: the right answer is more likely than each other one.
`reason` is BBH, by exact match of what follows "the answer is". `factuality` is TriviaQA, by F1 of words.
`fluency` is the n-gram entropy of answers to instructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import Sets
from eval.collection.records import Records
from eval.collection.requests import Answer, Generation, Likelihood, Prompt, Request
from eval.metrics.fluency import ngram_entropy
from eval.metrics.likelihood import without_end
from eval.metrics.short_answers import answer_f1, answer_match
from unlearn.data.example import Example

SETS = {
    "utility_general": "mmlu",
    "utility_reason": "bbh",
    "utility_truthfulness": "truthfulqa",
    "utility_factuality": "triviaqa",
    "utility_fluency": "fluency",
}
"""The sets, and the metric of each."""
_CHOICES = ("utility_general", "utility_truthfulness")
_LONG = ("utility_reason", "utility_fluency")
_OPENINGS = {
    "utility_general": "Answer:",
    "utility_reason": "A:",
    "utility_truthfulness": "A:",
    "utility_factuality": "A:",
}
_ANSWER = re.compile(r"[Tt]he answer is (.*?)\.")


@dataclass(frozen=True)
class Form:
    """Lengths of answers in tokens, and the texts before questions of TruthfulQA and TriviaQA."""

    tokens: int
    long_tokens: int
    before: Mapping[str, str]

    def question(self, name: str, example: Example) -> str:
        question = example.question or ""
        if name == "utility_fluency":
            return f"Instruction: {question}\n"
        if name in self.before:
            return f"{self.before[name]}Q: {question}" + "\n" * (name == "utility_factuality")
        return question


def request(name: str, examples: Sequence[Example], form: Form) -> Request:
    """Return `<set>/choices`, the likelihoods of all choices, or `<set>/answer`, a greedy answer."""
    if name in _CHOICES:
        return Likelihood(f"{name}/choices", _choices(name, examples, form))
    return Generation(
        f"{name}/answer", _prompts(name, examples, form), form.long_tokens if name in _LONG else form.tokens
    )


def values(read: Records, name: str, sets: Sets, form: Form) -> tuple[np.ndarray, Sequence[str | None]]:
    """Return the metric of each example, NaN where it was not measured, and the generations, if any."""
    examples = sets[name]
    if name in _CHOICES:
        items = _choices(name, examples, form)
        records = read.likelihood(f"{name}/choices").select(items)
        rows = without_end(records.logp, records.ended)
        sums = np.array([row.sum(dtype=np.float64) if len(row) else np.nan for row in rows])
        first = [first_of_ties(name, e) for e in examples]
        return preferred(sums, first), [None] * len(examples)
    texts = read.generation(f"{name}/answer").select(_prompts(name, examples, form)).text
    return _SCORES[name](examples, texts), texts


def preferred(logp: np.ndarray, first_of_ties: Sequence[Sequence[bool]]) -> np.ndarray:
    """Return 1 where the true choice of an example, the first, is likelier than every other one, else 0; [E].

    logp: the log-probabilities of all choices, example after example. NaN where one of an example's is NaN.
    first_of_ties: for each other choice of an example, whether the true one wins a tie with it.
    """
    ends = np.cumsum([1 + len(wins) for wins in first_of_ties])[:-1]
    rows = np.split(np.asarray(logp, dtype=np.float64), ends)

    def best(row: np.ndarray, wins: Sequence[bool]) -> float:
        others = row[1:]
        return float(np.where(wins, row[0] >= others, row[0] > others).all())

    pairs = zip(rows, first_of_ties, strict=True)
    return np.array([np.nan if np.isnan(row).any() else best(row, wins) for row, wins in pairs])


def first_of_ties(name: str, example: Example) -> list[bool]:
    """Return with which of the other choices the true one wins a tie.

    RWKU's code takes the arg-max of MMLU's four letters, which is the first of those that tie, and asks of
    TruthfulQA's true answer that it is likelier than each other one. In bf16 letters tie often.
    """
    is_letter = name == "utility_general"
    return [is_letter and example.answer < other for other in example.perturbed_answers]


def concluded(text: str) -> str:
    """Return what follows "the answer is" up to the next full stop; the whole text without it."""
    match = _ANSWER.search(text)
    return (match[1] if match else text).strip()


def _choices(name: str, examples: Sequence[Example], form: Form) -> tuple[Answer, ...]:
    return tuple(
        Answer(e.id, slot, form.question(name, e), f"{_OPENINGS[name]} {choice}")
        for e in examples
        for slot, choice in enumerate((e.answer, *e.perturbed_answers))
    )


def _prompts(name: str, examples: Sequence[Example], form: Form) -> tuple[Prompt, ...]:
    return tuple(Prompt(e.id, form.question(name, e), _OPENINGS.get(name, "")) for e in examples)


def _accepted(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    return [(e.answer, *e.other_answers) for e in examples]


_Score = Callable[[Sequence[Example], Sequence[str | None]], np.ndarray]
_SCORES: Mapping[str, _Score] = {
    "utility_reason": lambda examples, texts: answer_match(
        _accepted(examples), [None if text is None else concluded(text) for text in texts]
    ),
    "utility_factuality": lambda examples, texts: answer_f1(_accepted(examples), texts),
    "utility_fluency": lambda _, texts: ngram_entropy(texts),
}
