"""Annotations of the important parts of answers (SatImp, arXiv 2505.11953, section 3).

The file is a JSON object from an example's id (`"forget10/12"`), or its row as loaded (`"12"`), to a list.
An item is [start, end) in characters of the answer, or a part of the answer's text, which marks each of its
occurrences. `Encoder.important` maps the spans to tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn.data.example import Example
from unlearn.errors import UserError, listed, quoted
from unlearn.reading import describe, read_json

KEY = "dataset.annotations"
Span = tuple[int, int]


def load_annotations(path: Path | str, examples: Sequence[Example]) -> list[list[Span]]:
    """Return the spans of each example's answer, in order. Entries of other examples are ignored.

    Raises:
        UserError: the file is not such an object, has no entry for an example, or an entry does not match
            the answer; one message for all problems.
    """
    entries = read_annotations(path)
    spans: list[list[Span]] = []
    problems, missing = [], []
    for row, example in enumerate(examples):
        key = example.id if example.id in entries else str(row)
        if key not in entries:
            missing.append(example.id)
            continue
        try:
            spans.append(_spans(entries[key], example.answer))
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if missing:
        problems.append(f"no entry for {listed(missing, 5)}; write [] where nothing is important")
    if problems:
        raise UserError(f"{KEY}={path}: {listed(problems, 5, '; ')}")
    return spans


def read_annotations(path: Path | str) -> dict[str, Any]:
    """Read the entries of a file, by id or row; their content is not checked yet.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    entries = read_json(path, f"{KEY}={path}")
    if not isinstance(entries, dict):
        raise UserError(
            f"{KEY}={path}: expected an object from example id to spans, found {describe(entries)}"
        )
    return entries


def _spans(items: Any, answer: str) -> list[Span]:
    if not isinstance(items, list):
        raise ValueError(f"expected a list of spans or parts of the answer, found {describe(items)}")
    spans: list[Span] = []
    absent = [item for item in items if isinstance(item, str) and (not item.strip() or item not in answer)]
    if absent:
        raise ValueError(
            f"not in the answer {quoted(answer)}: {listed([quoted(item) for item in absent], 5)}"
        )
    for item in items:
        if isinstance(item, str):
            spans += [match.span() for match in re.finditer(re.escape(item), answer)]
        else:
            spans.append(_checked(item, answer))
    return sorted(set(spans))


def _checked(item: Any, answer: str) -> Span:
    is_pair = isinstance(item, list) and len(item) == 2 and all(type(number) is int for number in item)
    if not is_pair or not 0 <= item[0] < item[1] <= len(answer):
        raise ValueError(
            f"{item!r} is neither a part nor a span of the answer, which has {len(answer)} characters "
            f"(0 ≤ start < end ≤ {len(answer)})"
        )
    return item[0], item[1]
