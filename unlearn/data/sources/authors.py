"""The embedded default: fictitious authors in the shape of TOFU (`unlearn.data.synthetic_authors`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import PositiveInt

from unlearn.config import DatasetConfig, Section, Seed
from unlearn.data.example import Example
from unlearn.data.synthetic_authors import author_sets


class Options(Section):
    """Keys of `dataset.options`.

    - `authors`: how many authors there are.
    - `questions`: questions about each of them.
    - `seed`: of what is drawn: names, places, books.
    """

    authors: PositiveInt = 20
    questions: PositiveInt = 10
    seed: Seed = 0


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    options = Options(**cfg.options)
    sets = author_sets(
        authors=options.authors, questions=options.questions, forget=_percent(cfg), seed=options.seed
    )
    if cfg.full == "retain":
        sets["full"] = sets["retain"]
    return {name: rows for name, rows in sets.items() if name in names}


def check(cfg: DatasetConfig) -> list[str]:
    problems = []
    if cfg.path is not None:
        problems.append(
            f"dataset.path={cfg.path}: source authors makes its examples and reads no files; name the data's "
            "form too, such as dataset=tofu or dataset=custom"
        )
    if cfg.holdout not in (None, "holdout"):
        problems.append(f"dataset.holdout={cfg.holdout}: authors has one holdout split, holdout")
    if cfg.full not in (None, "full", "retain"):
        problems.append(f"dataset.full={cfg.full}: authors has full and retain")
    if cfg.retain not in (None, "retain"):
        problems.append(f"dataset.retain={cfg.retain}: authors has one retain split, retain")
    if not re.fullmatch(r"forget\d\d", cfg.forget or "forget10"):
        problems.append(f"dataset.forget={cfg.forget}: write forget and two digits of percent, as forget10")
    if not problems:
        try:
            load(cfg, ())
        except ValueError as error:
            authors = Options(**cfg.options).authors
            split = cfg.forget or "forget10"
            problems.append(f"dataset.forget={split} with dataset.options.authors={authors}: {error}")
    return problems


def available(cfg: DatasetConfig) -> dict[str, str]:
    names = ("forget", "retain", "holdout", "forget_eval", "retain_eval", "real_authors", "world_facts")
    return {name: name for name in names} | {"full": cfg.full or "full"}


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    known: dict[str, Any] = {"options": Options(**cfg.options).model_dump()}
    if set(names) == {"full"} and cfg.full != "retain":
        return known  # all authors, whatever share of them is to be forgotten
    return known | {"forget": _percent(cfg), "full": cfg.full}


def _percent(cfg: DatasetConfig) -> int:
    return int((cfg.forget or "forget10").removeprefix("forget"))
