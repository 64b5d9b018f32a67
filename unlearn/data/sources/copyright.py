"""A copyrighted text of your own to forget: passages and their continuations, as FLAT (arXiv 2410.11143).

`dataset.path` is a plain text in UTF-8. The forget set is `chunks` passages of `chunk_words` words. Their
beginnings are drawn without replacement by `seed`; they are in the order of the text and may overlap. The
first `prompt_words` of a passage are the question, the rest is the answer. The set `full`, on which a target
is trained, is the whole text in consecutive passages without questions. `dataset.retain`, `dataset.holdout`
and `dataset.full` are files of other texts, cut in the same way (`.txt`), or of rows (json, jsonl, parquet)
with the columns `question` and `answer`, or `text`.

FLAT takes 400 chunks of at most 512 tokens, 200 of them the prompt, which is about 380 and 150 words in
English. Words make the forget set the same for every model. FLAT's prompt is `model.prompt.template="###
Question: {question}\\n### Answer: "`. Its retain model is the base model, which was not trained on the text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from unlearn.config import DatasetConfig, Section, Seed
from unlearn.data.example import Example
from unlearn.data.readers import SUFFIXES, content_hash, parse_split, read_rows
from unlearn.data.sources import BASE
from unlearn.data.sources.custom import example_of, rows_problem
from unlearn.errors import UserError
from unlearn.paths import file_problem, user_path
from unlearn.reading import read_text

_OWN = ("retain", "full", "holdout")


class Options(Section):
    """Keys of `dataset.options`.

    - `chunks`: how many passages are drawn from the text to forget.
    - `chunk_words`: the length of a passage.
    - `prompt_words`: how many of its first words are the prompt.
    - `seed`: of the draw.
    """

    chunks: PositiveInt = 400
    chunk_words: PositiveInt = 380
    prompt_words: PositiveInt = 150
    seed: Seed = 0


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return a description of each set; `forget_eval` and `retain_eval` are the training sets."""
    files = {name: str(file) for name in _OWN if (file := getattr(cfg, name)) is not None}
    forget = f"passages of {Path(cfg.path or '').name}"
    sets = {"full": f"all of {Path(cfg.path or '').name}", **files, "forget": forget, "forget_eval": forget}
    return sets | ({"retain_eval": sets["retain"]} if "retain" in sets else {})


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    options, wanted = Options(**cfg.options), set(names)
    sets: dict[str, list[Example]] = {}
    for name in ("forget", *_OWN):
        names_of_set = {name, f"{name}_eval"} & wanted & available(cfg).keys()
        if names_of_set:
            sets |= dict.fromkeys(names_of_set, _set(cfg, name, options))
    return sets


def retain_model(_: DatasetConfig) -> str:
    return BASE


def check(cfg: DatasetConfig) -> list[str]:
    options, problems = Options(**cfg.options), []
    if cfg.forget is not None:
        problems.append(
            f"dataset.forget={cfg.forget}: the forget set is drawn from dataset.path; set "
            "dataset.options.chunks and seed"
        )
    if options.prompt_words >= options.chunk_words:
        problems.append(
            f"dataset.options.prompt_words={options.prompt_words} leaves nothing to answer of "
            f"chunk_words={options.chunk_words}"
        )
    if cfg.path is None:
        problems.append("dataset.path is not set: give the text to forget, a plain text file in UTF-8")
    elif problem := file_problem(cfg.path):
        problems.append(f"dataset.path={cfg.path}: {problem}")
    for name in _OWN:
        file = _file(cfg, name)
        if file is not None and (problem := rows_problem(file, getattr(cfg, name), more=(".txt",))):
            problems.append(f"dataset.{name}={file}: {problem}")
        elif (
            file is not None
            and file.suffix.lower() == ".txt"
            and parse_split(getattr(cfg, name))[1] != slice(None)
        ):
            problems.append(f"dataset.{name}={getattr(cfg, name)}: a text has no rows to cut; leave @… out")
    return problems


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    wanted = {name.removesuffix("_eval") for name in names} & available(cfg).keys()
    files = {name: _file(cfg, name) or user_path(cfg.path or "") for name in wanted}
    return {
        "files": {name: content_hash(file) for name, file in sorted(files.items())},
        "rows": {
            name: str(parse_split(getattr(cfg, name))[1])
            for name in _OWN
            if name in wanted and getattr(cfg, name)
        },
        "options": Options(**cfg.options).model_dump(),
    }


def passages(text: str, options: Options, name: str) -> list[Example]:
    """Return the drawn passages of a text as questions and answers.

    Raises:
        UserError: the text is too short for so many; the message says how many there are.
    """
    words = _words(text)
    places = len(words) - options.chunk_words + 1
    if places < options.chunks:
        raise UserError(
            f"{name} has {len(words)} words, in which {max(places, 0)} passages of "
            f"{options.chunk_words} words begin: lower dataset.options.chunks={options.chunks} or chunk_words"
        )
    examples = []
    for first in sorted(random.Random(options.seed).sample(range(places), options.chunks)):
        own = words[first : first + options.chunk_words]
        question = text[own[0][0] : own[options.prompt_words - 1][1]]
        answer = text[own[options.prompt_words][0] : own[-1][1]]
        examples.append(Example(id=f"{name}/{first}", question=question, answer=answer))
    return examples


def whole(text: str, options: Options, name: str) -> list[Example]:
    """Return the whole text in consecutive passages without questions, the last one shorter."""
    words, size = _words(text), options.chunk_words
    parts = [words[first : first + size] for first in range(0, len(words), size)]
    return [Example(id=f"{name}#{i}", answer=text[p[0][0] : p[-1][1]]) for i, p in enumerate(parts)]


def _set(cfg: DatasetConfig, name: str, options: Options) -> list[Example]:
    file = _file(cfg, name)
    if file is not None and file.suffix.lower() in SUFFIXES:
        table = read_rows(file, f"dataset.{name}={file}").cut(parse_split(getattr(cfg, name))[1])
        return [example_of(row, where, f"{file.stem}/{number}") for number, row, where in table]
    text = _text(file or user_path(cfg.path or ""), "dataset.path" if file is None else f"dataset.{name}")
    stem = (file or Path(cfg.path or "")).stem
    return whole(text, options, stem) if name == "full" else passages(text, options, stem)


def _file(cfg: DatasetConfig, name: str) -> Path | None:
    """Return the set's own file, None for a set from the text itself."""
    file = getattr(cfg, name) if name in _OWN else None
    return None if file is None else user_path(parse_split(file)[0])


def _text(file: Path, key: str) -> str:
    text = read_text(file, f"{key}={file}")
    if not text.strip():
        raise UserError(f"{key}={file}: the file is empty")
    return text


def _words(text: str) -> list[tuple[int, int]]:
    """Return where each word begins and ends; words are separated by white space."""
    return [match.span() for match in re.finditer(r"\S+", text)]
