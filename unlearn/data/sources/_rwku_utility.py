"""RWKU's questions on utility: rows of five public benchmarks as examples.

The prompts are those of its code (`eval_mmlu.py`, `eval_bbh.py`); the rows bring their few-shot examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearn.data.columns import text_of, texts_of
from unlearn.data.example import Example
from unlearn.data.readers import Row
from unlearn.errors import UserError
from unlearn.reading import describe

LETTERS = ("A", "B", "C", "D")


def general(row: Row, where: str, key: str) -> Example:
    """Return a question of MMLU with its five examples; the answers are letters."""
    examples = row.get("examples")
    if not isinstance(examples, list):
        raise UserError(f"{where}: column 'examples' holds {describe(examples)}, but must be a list of rows")
    shots = [f"{_choices(shot, where)}\nAnswer: {LETTERS[_right(shot, where)]}\n\n" for shot in examples]
    topic = text_of(row, "task", where).replace("_", " ")
    question = (
        f"The following are multiple choice questions (with answers) about {topic}.\n\n{''.join(shots)}"
        f"Please following the previous examples and answer the given question.\n{_choices(row, where)}"
    )
    answer = LETTERS[_right(row, where)]
    others = tuple(letter for letter in LETTERS[: len(row["choices"])] if letter != answer)
    return Example(key, answer, question, perturbed_answers=others)


def reason(row: Row, where: str, key: str) -> Example:
    """Return a question of BBH with its three worked examples."""
    question = (
        f"{text_of(row, 'cot', where).strip()}\n\nFollowing previous examples, answer the following "
        f"questions and end with 'so the answer is'\nQ: {text_of(row, 'question', where)}"
    )
    return _answered(row, where, key, question, "answer")


def truthfulness(row: Row, where: str, key: str) -> Example:
    """Return a question of TruthfulQA: its first true answer of MC1, and the false ones."""
    targets = row.get("mc1_targets")
    if not isinstance(targets, Mapping):
        raise UserError(f"{where}: column 'mc1_targets' holds {describe(targets)}, but must be an object")
    choices, labels = texts_of(dict(targets), "choices", where), targets.get("labels")
    if not isinstance(labels, list) or len(labels) != len(choices) or not {0, 1} <= set(labels):
        raise UserError(
            f"{where}: column 'mc1_targets': labels must hold 0 or 1 for each of the {len(choices)} choices, "
            "each of them once at least"
        )
    true = [choice for choice, label in zip(choices, labels, strict=True) if label == 1]
    false = tuple(choice for choice, label in zip(choices, labels, strict=True) if label != 1)
    return Example(key, true[0], text_of(row, "question", where), perturbed_answers=false)


def factuality(row: Row, where: str, key: str) -> Example:
    """Return a question of TriviaQA with the answers that are accepted."""
    return _answered(row, where, key, text_of(row, "question", where), "answers")


def fluency(row: Row, where: str, key: str) -> Example:
    """Return an instruction, which has no true answer."""
    return Example(key, "", text_of(row, "instruction", where))


def _answered(row: Row, where: str, key: str, question: str, column: str) -> Example:
    single = isinstance(row.get(column), str)
    answers = (text_of(row, column, where),) if single else texts_of(row, column, where)
    if not answers:
        raise UserError(f"{where}: column {column!r} has no answer")
    return Example(key, answers[0], question, other_answers=answers[1:])


def _choices(row: Any, where: str) -> str:
    choices = texts_of(row, "choices", where) if isinstance(row, dict) else ()
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{where}: column 'choices' holds {len(choices)} texts, but must hold two to four")
    lines = (f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"Question: {text_of(row, 'question', where)}{''.join(lines)}"


def _right(row: Row, where: str) -> int:
    answer, count = row.get("answer"), len(row["choices"])
    if type(answer) is not int or not 0 <= answer < count:
        raise UserError(
            f"{where}: column 'answer' holds {answer!r}, but must be a number from 0 to {count - 1}"
        )
    return answer


UTILITY = {
    "utility_general": general,
    "utility_reason": reason,
    "utility_truthfulness": truthfulness,
    "utility_factuality": factuality,
    "utility_fluency": fluency,
}
