"""Read the columns of a row: texts, lists of texts, or nothing; values are not converted."""

from __future__ import annotations

from typing import Any

from unlearn.data.example import Example
from unlearn.data.readers import Row
from unlearn.errors import UserError, did_you_mean
from unlearn.reading import describe


def text_of(row: Row, column: str, where: str) -> str:
    """Return the text of a column.

    Raises:
        UserError: the column is missing, is not text, or is empty; lists the existing columns.
    """
    if column not in row:
        near = did_you_mean(column, row) if row else ""
        raise UserError(
            f"{where}: column {column!r} is missing (columns: {', '.join(map(str, row))})"
            f"{near if near.startswith(' (did') else ''}"
        )
    return _text(row[column], f"{where}: column {column!r}")


def optional_text(row: Row, column: str, where: str) -> str | None:
    """Return the text of a column, None where it is null or missing; raise UserError for anything else."""
    return None if row.get(column) is None else text_of(row, column, where)


def texts_of(row: Row, column: str, where: str) -> tuple[str, ...]:
    """Return the list of texts of a column, empty where it is null or missing.

    Raises:
        UserError: it is anything else, such as one text, or a list with something else in it.
    """
    values = row.get(column)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise UserError(f"{where}: column {column!r} holds {describe(values)}, but must be a list of texts")
    return tuple(_text(value, f"{where}: column {column!r}, item {i}") for i, value in enumerate(values))


def question_and_answer(
    row: Row, where: str, key: str, *, question: str = "question", answer: str = "answer",
    template: str | None = None,
) -> Example:  # fmt: skip
    """Make an example with the id `key` from a row in TOFU's columns; columns after the answer are optional.

    Raises:
        UserError: a column has a value of the wrong type, or no answer or question.
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
        raise UserError(f"{where} holds {describe(value)}, but must be a text{quoted}")
    if not value.strip():
        raise UserError(
            f"{where} {'holds only white space' if value else 'is empty'}: fill it in, or leave the row out"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}) at character "
            f"{error.start}, which is not valid text: repair or remove it"
        ) from None
    return value
