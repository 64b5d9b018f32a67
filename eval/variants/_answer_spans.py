"""Read a file of the parts of answers that hold the fact, as published with the unlearning depth score."""

from __future__ import annotations

from typing import Any

from unlearn.errors import UserError, listed
from unlearn.reading import describe, read_json


def read_spans(path: str, key: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Return [start, end) in characters of the answer, by question and answer; `key` names the file's option.

    Raises:
        UserError: the file is no such list, or an entity is not in its answer; names the entries.
    """
    label = f"{key}={path}"
    rows = read_json(path, label)
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{label}: expected a list of objects with question, answer and entity; it holds {describe(rows)}"
        )
    spans, problems = {}, []
    for number, row in enumerate(rows):
        try:
            spans[row["question"], row["answer"]] = _span(row)
        except (TypeError, KeyError):
            problems.append(f"entry {number} has no question, answer and entity, each a text")
        except ValueError as error:
            problems.append(f"entry {number}: {error}")
    if problems:
        raise UserError(f"{label}: {listed(problems, 3, '; ')}")
    return spans


def _span(row: dict[str, Any]) -> tuple[int, int]:
    texts = [row["question"], row["answer"], row["entity"], row.get("prefix") or ""]
    if not all(isinstance(text, str) for text in texts) or not row["entity"].strip():
        raise TypeError
    _, answer, entity, prefix = texts
    start = answer.find(entity, len(prefix) if answer.startswith(prefix) else 0)
    if start < 0:
        raise ValueError(f"the entity {entity!r} does not follow {prefix!r} in the answer {answer!r}")
    return start, start + len(entity)
