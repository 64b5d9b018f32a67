"""Alternative answers to questions: refusals, answers to other questions, or a column of the data.

The answers of an example depend on the seed and its id alone, not on the order of the examples or the number
of processes. Answers sampled from the target are in `unlearn.training.sampled_alternatives`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from random import Random
from typing import Any

from unlearn.config import AlternativesConfig
from unlearn.data.example import Example
from unlearn.data.readers import content_hash
from unlearn.data.text_lists import distinct, read_texts
from unlearn.errors import UserError
from unlearn.paths import user_path

KEY = "method.alternatives"
_REFUSALS = Path(__file__).with_name("refusals.txt")


def alternatives(
    cfg: AlternativesConfig, examples: Sequence[Example], *, pool: Sequence[Example], seed: int
) -> list[list[str]]:
    """Return `cfg.count` alternative answers of each example; none repeats while the source has others.

    Without a path, `mismatch` draws from the answers of `pool` to other questions (for plain texts: from its
    other plain texts).

    Raises:
        UserError: the source has no other answer for an example.
    """
    if cfg.source == "sampled":
        raise ValueError(
            "sampled alternatives need the model: unlearn.training.sampled_alternatives.sample_alternatives"
        )
    if cfg.source == "column":
        return [[_column(example)] * cfg.count for example in examples]
    fixed = _fixed_answers(cfg)
    candidates = _answers_of(pool) if fixed is None else lambda _: (fixed, set())
    drawn = []
    for example in examples:
        answers, correct = candidates(example)
        others = draw(answers, cfg.count, f"{seed}/{example.id}", exclude={example.answer.strip(), *correct})
        if not others:
            source = f"{KEY}.path={cfg.path}" if cfg.path else f"{KEY}.source={cfg.source}: the retain set"
            raise UserError(
                f"{source} has no answer for {example.id} except its own: "
                f"set {KEY}.path to a file of other answers"
            )
        drawn.append(others)
    return drawn


def draw(lines: Sequence[str], count: int, key: str, *, exclude: Collection[str] = ()) -> list[str]:
    """Draw `count` of the lines, seeded by the key, each once before any repeats; empty if there are none."""
    random = Random(key)
    if count > len(lines) - len(exclude) or not lines:
        lines = [line for line in lines if line not in exclude]
        exclude = ()
    rounds = chain.from_iterable(_shuffled(len(lines), random) for _ in repeat(None, count))
    return list(islice((line for i in rounds if (line := lines[i]) not in exclude), count))


def check(cfg: AlternativesConfig) -> list[str]:
    """Return the problems that can be seen without the data."""
    try:
        _fixed_answers(cfg)
    except UserError as error:
        return [str(error)]
    return []


def identity(cfg: AlternativesConfig) -> dict[str, Any]:
    """Return what the answers depend on, except the data, the model and the seed; JSON."""
    keys: dict[str, Any] = {"source": cfg.source, "count": cfg.count}
    if cfg.rows == "all":
        keys["rows"] = cfg.rows
    if cfg.source == "sampled":
        keys |= {name: getattr(cfg, name) for name in ("prompt", "temperature", "max_new_tokens")}
    elif cfg.source != "column" and (cfg.path or cfg.source == "refusals"):
        keys["file"] = content_hash(user_path(cfg.path or _REFUSALS))
    return keys


def refusals() -> list[str]:
    """Return the package's own refusals, sorted."""
    return distinct(_REFUSALS.read_text(encoding="utf-8").split("\n"))


def read_answers(path: Path | str) -> list[str]:
    """Return the distinct answers of a file, sorted.

    A text file has one answer per line. In a file of rows (json, jsonl, parquet) the answers are the column
    `answer`, or else `text`, or bare texts.

    Raises:
        UserError: the file cannot be read, a row holds no answer, or there are none.
    """
    return read_texts(path, f"{KEY}.path={path}", "answer")


def _fixed_answers(cfg: AlternativesConfig) -> list[str] | None:
    """Return the answers to draw from where they do not depend on the data, else None."""
    if cfg.source in ("refusals", "mismatch") and cfg.path is not None:
        return read_answers(cfg.path)
    return refusals() if cfg.source == "refusals" else None


def _answers_of(pool: Sequence[Example]) -> Callable[[Example], tuple[list[str], set[str]]]:
    """Return a function from an example to the answers to draw from, and the correct ones among them."""
    answers = {
        plain: distinct(e.answer for e in pool if (e.question is None) is plain) for plain in (False, True)
    }
    correct: dict[str, set[str]] = defaultdict(set)
    for e in pool:
        if e.question is not None:
            correct[e.question].add(e.answer.strip())

    def candidates(example: Example) -> tuple[list[str], set[str]]:
        of_kind = answers[example.question is None]
        if not of_kind:
            missing = "plain texts" if example.question is None else "questions"
            raise UserError(
                f"{KEY}.source=mismatch: the retain set has no {missing} to take answers from; "
                f"set dataset.retain, or set {KEY}.path to a file of answers"
            )
        return of_kind, correct.get(example.question or "", set())

    return candidates


def _column(example: Example) -> str:
    if example.template is None or not example.template.strip():
        raise UserError(
            f"{KEY}.source=column: {example.id} has no text in the column template; "
            f"fill that column, or choose {KEY}.source=refusals"
        )
    return example.template


def _shuffled(n: int, random: Random) -> Iterator[int]:
    """Yield range(n) in random order (Fisher–Yates shuffle, without building the list)."""
    moved: dict[int, int] = {}
    for left in range(n, 0, -1):
        at = int(random.random() * left)  # only random() gives the same numbers in every Python version
        yield moved.get(at, at)
        moved[at] = moved.get(left - 1, left - 1)
