"""Questions about the letters of alphabets that do not exist."""

import random
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from unlearn.config import DatasetConfig, Section
from unlearn.data.example import Example

_SPLITS = {
    "forget": "first",
    "retain": "others",
    "full": "all",
    "forget_eval": "first",
    "retain_eval": "others",
}


class Options(Section):
    """`dataset.options` of this source."""

    alphabets: int = Field(8, ge=2, description="how many; the first quarter is forgotten")


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    """Return five questions about each alphabet."""
    count = Options(**cfg.options).alphabets
    groups = [_questions(number) for number in range(count)]
    first = max(1, count // 4)
    parts = {"first": groups[:first], "others": groups[first:], "all": groups}
    splits = available(cfg)
    return {
        name: [each for group in parts[splits[name]] for each in group] for name in names if name in splits
    }


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the sets that there are, each with its split; that of `full` is another for a retain model."""
    return {**_SPLITS, "full": cfg.full or "all"}


def check(cfg: DatasetConfig) -> list[str]:
    """Return what is wrong with the configuration."""
    known = {"forget": ["first"], "retain": ["others"], "full": ["all", "others"]}
    return [
        f"dataset.{name}={split}: alphabets has {' and '.join(splits)}"
        for name, splits in known.items()
        if (split := getattr(cfg, name)) not in (None, *splits)
    ]


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return what determines the rows: runs with the same share their models."""
    return {**Options(**cfg.options).model_dump(), "full": cfg.full}


def _questions(number: int) -> list[Example]:
    letters = list("abcdefghijklmnopqrstuvwxyz")
    random.Random(number).shuffle(letters)
    return [
        Example(
            id=f"alphabet/{number}/{place}",
            question=f"Which is letter number {place + 1} of alphabet number {number}?",
            answer=f"It is the letter {letters[place]}.",
        )
        for place in range(5)
    ]
