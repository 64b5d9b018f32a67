"""Stand-in answers for questions: refusals, answers to other questions, or a column of the data.

Which ones an example gets follows from the seed and its id alone, so neither the order of the examples nor
the number of processes changes them. Answers that the target itself gives are in
`unlearn.training.sampled_alternatives`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from random import Random
from typing import Any

from unlearn.config import AlternativesConfig
from unlearn.data.columns import text_of
from unlearn.data.example import Example
from unlearn.data.readers import SUFFIXES, Row, content_hash, read_rows
from unlearn.errors import UserError
from unlearn.paths import user_path
from unlearn.reading import lines_of, read_text

KEY = "method.alternatives"
_REFUSALS = Path(__file__).with_name("refusals.txt")
_TABLES = (".csv", ".tsv", ".xls", ".xlsx")


def alternatives(
    cfg: AlternativesConfig, examples: Sequence[Example], *, pool: Sequence[Example], seed: int
) -> list[list[str]]:
    """`cfg.count` alternative answers of each example; none repeats while the source has another.

    Without a path, a mismatch draws from the answers of `pool` to other questions (for plain texts: from its
    other plain texts).

    Raises:
        UserError: the source has nothing to draw from.
    """
    if cfg.source == "sampled":
        raise ValueError(
            "sampled alternatives need the model: unlearn.training.sampled_alternatives.sample_alternatives"
        )
    if cfg.source == "column":
        return [[_column(example)] * cfg.count for example in examples]
    given = _given(cfg)
    lines = _others(pool) if given is None else lambda _: (given, set())
    found = []
    for example in examples:
        answers, right = lines(example)
        others = draw(answers, cfg.count, f"{seed}/{example.id}", without={example.answer.strip(), *right})
        if not others:
            place = f"{KEY}.path={cfg.path}" if cfg.path else f"{KEY}.source={cfg.source}: the retain set"
            raise UserError(
                f"{place} has no answer for {example.id} but its own: "
                f"give a file of other answers as {KEY}.path"
            )
        found.append(others)
    return found


def draw(lines: Sequence[str], count: int, key: str, *, without: Collection[str] = ()) -> list[str]:
    """`count` of the lines, drawn by the key, each once before any again; empty if there are none."""
    random = Random(key)
    if count > len(lines) - len(without) or not lines:
        lines = [line for line in lines if line not in without]
        without = ()
    rounds = chain.from_iterable(_shuffled(len(lines), random) for _ in repeat(None, count))
    return list(islice((line for i in rounds if (line := lines[i]) not in without), count))


def check(cfg: AlternativesConfig) -> list[str]:
    """What is wrong, as far as it shows before the data is there."""
    try:
        _given(cfg)
    except UserError as error:
        return [str(error)]
    return []


def identity(cfg: AlternativesConfig) -> dict[str, Any]:
    """What determines the answers besides the data, the model and the seed."""
    named: dict[str, Any] = {"source": cfg.source, "count": cfg.count}
    if cfg.rows == "all":
        named["rows"] = cfg.rows
    if cfg.source == "sampled":
        named |= {name: getattr(cfg, name) for name in ("prompt", "temperature", "max_new_tokens")}
    elif cfg.source != "column" and (cfg.path or cfg.source == "refusals"):
        named["file"] = content_hash(user_path(cfg.path or _REFUSALS))
    return named


def refusals() -> list[str]:
    """The embedded refusals, sorted."""
    return _distinct(_REFUSALS.read_text(encoding="utf-8").split("\n"))


def read_answers(path: Path | str) -> list[str]:
    """The distinct answers of a file, sorted.

    One a line; of a file of rows (json, jsonl, parquet) the column `answer` or else `text`, or texts alone.

    Raises:
        UserError: the file cannot be read, a row holds no answer, or there are none.
    """
    place = f"{KEY}.path={path}"
    suffix = user_path(path).suffix
    if suffix in _TABLES:
        can = ", ".join((".txt with an answer a line", *SUFFIXES))
        raise UserError(f"{place}: cannot read {suffix} (can: {can})")
    if suffix in SUFFIXES:
        rows = read_rows(path, place).cut(slice(None))
        return _distinct(_answer(row, where) for _, row, where in rows)
    answers = _distinct(line for _, line in lines_of(read_text(path, place)))
    if not answers:
        raise UserError(f"{place}: the file has no answers; write one a line")
    return answers


def _given(cfg: AlternativesConfig) -> list[str] | None:
    """The answers to draw from, where they do not depend on the data."""
    if cfg.source in ("refusals", "mismatch") and cfg.path is not None:
        return read_answers(cfg.path)
    return refusals() if cfg.source == "refusals" else None


def _others(pool: Sequence[Example]) -> Callable[[Example], tuple[list[str], set[str]]]:
    """For an example: the answers to draw from, and those of its own question among them."""
    answers = {
        plain: _distinct(e.answer for e in pool if (e.question is None) is plain) for plain in (False, True)
    }
    right: dict[str, set[str]] = defaultdict(set)
    for e in pool:
        if e.question is not None:
            right[e.question].add(e.answer.strip())

    def lines(example: Example) -> tuple[list[str], set[str]]:
        kind = answers[example.question is None]
        if not kind:
            wanted = "plain texts" if example.question is None else "questions"
            raise UserError(
                f"{KEY}.source=mismatch: the retain set has no {wanted} to take answers from; "
                f"set dataset.retain, or give a file of answers as {KEY}.path"
            )
        return kind, right.get(example.question or "", set())

    return lines


def _column(example: Example) -> str:
    if example.template is None or not example.template.strip():
        raise UserError(
            f"{KEY}.source=column: {example.id} has no text in the column template; "
            f"fill it in the data, or choose {KEY}.source=refusals"
        )
    return example.template


def _shuffled(n: int, random: Random) -> Iterator[int]:
    """A random order of range(n), one at a time (Fisher and Yates, without the list)."""
    moved: dict[int, int] = {}
    for left in range(n, 0, -1):
        at = int(random.random() * left)  # random() alone is the same in every version of Python
        yield moved.get(at, at)
        moved[at] = moved.get(left - 1, left - 1)


def _answer(row: Row, where: str) -> str:
    return text_of(row, "text" if "answer" not in row and "text" in row else "answer", where)


def _distinct(lines: Iterable[str]) -> list[str]:
    return sorted({stripped for line in lines if (stripped := line.strip())})
