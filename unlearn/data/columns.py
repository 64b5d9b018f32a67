"""What the columns of a row hold: texts, lists of texts, or nothing; nothing is converted."""

from __future__ import annotations

from typing import Any

from unlearn.data.example import Example
from unlearn.data.readers import Row
from unlearn.errors import UserError, did_you_mean
from unlearn.reading import found


def text_of(row: Row, column: str, where: str) -> str:
    """A column that must hold text.

    Raises:
        UserError: it is absent, no text, or empty; lists the columns there are.
    """
    if column not in row:
        near = did_you_mean(column, row) if row else ""
        raise UserError(
            f"{where}: column {column!r} is missing (columns: {', '.join(map(str, row))})"
            f"{near if near.startswith(' (did') else ''}"
        )
    return _text(row[column], f"{where}: column {column!r}")


def optional_text(row: Row, column: str, where: str) -> str | None:
    """A column that holds text, null, or is not there; raises UserError for anything else."""
    return None if row.get(column) is None else text_of(row, column, where)


def texts_of(row: Row, column: str, where: str) -> tuple[str, ...]:
    """A column that holds a list of texts, null, or is not there.

    Raises:
        UserError: it is anything else: one text, or a list with something else in it.
    """
    values = row.get(column)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise UserError(f"{where}: column {column!r} holds {found(values)}, where a list of texts is wanted")
    return tuple(_text(value, f"{where}: column {column!r}, item {i}") for i, value in enumerate(values))


def question_and_answer(
    row: Row, where: str, key: str, *, question: str = "question", answer: str = "answer",
    template: str | None = None,
) -> Example:  # fmt: skip
    """A row in TOFU's columns, with the id `key`; the further ones are used where they are there.

    Raises:
        UserError: a column holds what it may not.
    """
    return Example(
        id=key,
        question=text_of(row, question, where),
        answer=text_of(row, answer, where),
        paraphrased_answer=optional_text(row, "paraphrased_answer", where),
        perturbed_answers=texts_of(row, "perturbed_answer", where),
        paraphrased_question=optional_text(row, "paraphrased_question", where),
        template=template,
    )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        quoted = ": put it in quotes" if isinstance(value, int | float) and value == value else ""
        raise UserError(f"{where} holds {found(value)}, where a text is wanted{quoted}")
    if not value.strip():
        raise UserError(
            f"{where} {'holds white space alone' if value else 'is empty'}: fill it in, or leave the row out"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}) at character "
            f"{error.start}, which is no text: repair or remove it"
        ) from None
    return value
