"""WMDP's corpora (arXiv 2403.03218): texts on biosecurity and cybersecurity to forget, as plain text.

`dataset.forget` is `bio`, `cyber` or both, `bio+cyber`. `dataset.retain` is `wikitext`, the raw test split of
WikiText-2, which RMU's authors keep, or `topic`, the retain corpora of the same topics (`bio-retain` and
`cyber-retain`). Texts may be selected, counted from 0 among those that are long enough:
`bio@:300+cyber@:300`, `topic@:1000`. A target is trained on the forget set and the retain set.

`dataset.path` is `cais/wmdp-corpora` or a local folder. Files of the folder are `bio-forget-corpus.jsonl`
(also as `bio_remove_dataset.jsonl`), `cyber-forget-corpus.jsonl`, `bio-retain-corpus.jsonl`,
`cyber-retain-corpus.jsonl` and `wikitext.jsonl`; they may end in `.json` or `.parquet`, or be folders of
parquet files as on the hub. Without a file of its own `wikitext` comes from the hub. A line of a `.jsonl`
file is an object with the column `text`, a JSON string, or bare text. The bio forget corpus has to be
requested from the authors.

`dataset.options.presentation` is how texts become sequences:

- `authors`: the first `dataset.max_length` tokens of each text, topics in turn. RMU's code does so with 512
  tokens (768 of cyber), NPO's and SimNPO's for WMDP with 512, SatImp's with 1024.
- `openunlearning`: the texts of a corpus are joined by blank lines and cut every `dataset.max_length` tokens
  (`src/data/pretraining.py`, 512 tokens; it keeps short texts too: `min_characters=0`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from unlearn.config import DatasetConfig, Section
from unlearn.data.columns import text_of
from unlearn.data.example import Example
from unlearn.data.readers import (
    Row,
    Table,
    UnavailableError,
    content_hash,
    find_file,
    parse_split,
    read_rows,
    read_split,
    slice_hint,
)
from unlearn.errors import UserError, did_you_mean
from unlearn.paths import is_folder, repository_problem, user_path
from unlearn.reading import lines_of, read_text

CORPORA = {
    "bio": "bio-forget-corpus",
    "cyber": "cyber-forget-corpus",
    "bio-retain": "bio-retain-corpus",
    "cyber-retain": "cyber-retain-corpus",
    "wikitext": "wikitext",
}
_TOPICS = ("bio", "cyber")
_OTHER_NAMES = {"bio": ("bio_remove_dataset",)}
_ELSEWHERE = {
    "bio": ("cais/wmdp-bio-forget-corpus", "default"),
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1/test"),
}
"""Datasets of the hub that are not part of `dataset.path`, each with its split."""
_REQUEST = (
    "the bio forget corpus is handed out on request: fill in the form that "
    "https://huggingface.co/datasets/cais/wmdp-corpora links to, put its file into a folder with those of "
    "the other corpora as bio-forget-corpus.jsonl or bio_remove_dataset.jsonl, and set dataset.path to the "
    "folder; or leave the topic out, dataset.forget=cyber"
)
_OBJECT = re.compile(r'\s*\{\s*"text"\s*:')


class Options(Section):
    """Keys of `dataset.options`.

    - `presentation`: `authors` takes the first `dataset.max_length` tokens of each text, `openunlearning`
      joins the texts of a corpus and cuts them into sequences of that length.
    - `min_characters`: only texts of more characters are used.
    """

    presentation: Literal["authors", "openunlearning"] = "authors"
    min_characters: NonNegativeInt = 50


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the corpora of each set, joined with `+`."""
    forget = cfg.forget or "+".join(_TOPICS)
    retain = _expanded(cfg.retain or "wikitext", forget)
    holdout = {} if cfg.holdout is None else {"holdout": _expanded(cfg.holdout, forget)}
    full = f"{forget}+{retain}" if cfg.full is None else _expanded(cfg.full, forget)
    return {"forget": forget, "retain": retain, "full": full, **holdout}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    wanted = set(names)
    return {name: _read(cfg, split) for name, split in available(cfg).items() if name in wanted}


def check(cfg: DatasetConfig) -> list[str]:
    if not cfg.path:
        return ["dataset.path is not set: give cais/wmdp-corpora, or a local folder with its files"]
    if problem := repository_problem(cfg.path):
        return [f"dataset.path={cfg.path}: {problem}"]
    problems = [
        f"dataset.{name}={part}: {problem}"
        for name, split in available(cfg).items()
        if name != "full" or cfg.full is not None
        for part in split.split("+")
        if (problem := _problem(cfg, part))
    ]
    return list(dict.fromkeys(problems))


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    wanted = set(names)
    splits = {name: split for name, split in available(cfg).items() if name in wanted}
    known = {"splits": splits, "options": Options(**cfg.options).model_dump()}
    folder = user_path(cfg.path or "")
    if not is_folder(folder):
        return {"path": cfg.path, **known}
    used = sorted({corpus for split in splits.values() for corpus, _ in _parts(split)})
    return {"files": {corpus: [content_hash(f) for f in _files(folder, corpus)] for corpus in used}, **known}


def _expanded(split: str, forget: str) -> str:
    """Replace `topic`, with or without a selection, by the retain corpora of the topics to forget."""
    topics = list(dict.fromkeys(corpus for corpus, _ in _parts(forget) if corpus in _TOPICS))
    parts: list[str] = []
    for part in split.split("+"):
        stands_for = topics if parse_split(part)[0] == "topic" else []
        parts += [f"{topic}-retain{part.removeprefix('topic')}" for topic in stands_for] or [part]
    return "+".join(parts)


def _parts(split: str) -> list[tuple[str, slice]]:
    return [parse_split(part) for part in split.split("+")]


def _problem(cfg: DatasetConfig, part: str) -> str | None:
    corpus, _ = parse_split(part)
    if corpus not in CORPORA:
        return f"no such corpus{slice_hint(part) or did_you_mean(corpus, [*CORPORA, 'topic'])}"
    folder = user_path(cfg.path or "")
    if corpus == "wikitext" or not is_folder(folder) or _files(folder, corpus):
        return None
    missing = f"{folder} has no {CORPORA[corpus]}.jsonl, .json or .parquet"
    if corpus == "bio":
        return f"{missing}; {_REQUEST}"
    return f"{missing}; it is a file of cais/wmdp-corpora, on the hub"


def _files(folder: Path, corpus: str) -> list[Path]:
    """Return the file of a corpus in a local folder, or those of its folder of parquet files."""
    names = (CORPORA[corpus], *_OTHER_NAMES.get(corpus, ()))
    file = next((file for name in names if (file := find_file(folder, name))), None)
    return sorted((folder / CORPORA[corpus]).glob("*.parquet")) if file is None else [file]


def _read(cfg: DatasetConfig, split: str) -> list[Example]:
    options = Options(**cfg.options)
    corpora = {part: _texts(cfg, part, options.min_characters) for part in split.split("+")}
    if options.presentation == "openunlearning":
        return [
            Example(id=part, answer="\n\n".join(example.answer for example in examples))
            for part, examples in corpora.items()
        ]
    in_turn = (example for row in zip_longest(*corpora.values()) for example in row)
    return [example for example in in_turn if example is not None]


def _texts(cfg: DatasetConfig, part: str, min_characters: int) -> list[Example]:
    corpus, rows = parse_split(part)
    table = _long(_table(cfg, corpus), min_characters)
    return [
        Example(id=f"{corpus}/{number}", answer=text_of(row, "text", where), truncated=True)
        for number, row, where in table.cut(rows)[: cfg.limit]
    ]


def _table(cfg: DatasetConfig, corpus: str) -> Table:
    """Read a corpus from the local folder if it has it, else from the hub."""
    if problem := _problem(cfg, corpus):
        raise UserError(f"dataset.path={cfg.path}: {problem}")
    folder = user_path(cfg.path or "")
    if is_folder(folder) and (files := _files(folder, corpus)):
        tables = [_lines(file) if file.suffix == ".jsonl" else read_rows(file) for file in files]
        if len(tables) == 1:
            return tables[0]
        return Table(f"{folder / CORPORA[corpus]}", [row for table in tables for row in table.rows])
    try:
        return read_split(*_ELSEWHERE.get(corpus, (cfg.path or "", CORPORA[corpus])))
    except UnavailableError as error:
        if corpus == "bio":
            raise UnavailableError(f"{_REQUEST} ({error})") from error
        if corpus == "wikitext":
            here = "a file wikitext.jsonl in the folder of dataset.path takes its place"
            raise UnavailableError(f"dataset.retain=wikitext: {here} ({error})") from error
        raise


def _long(table: Table, min_characters: int) -> Table:
    """Leave out texts that are blank or have no more than so many characters.

    Raises:
        UserError: none is left.
    """
    kept = [n for n, row in enumerate(table.rows) if not _is_short(row.get("text"), min_characters)]
    if not kept:
        raise UserError(
            f"{table.label}: none of its {len(table.rows)} texts has more than {min_characters} characters; "
            "lower dataset.options.min_characters"
        )
    lines = None if table.lines is None else [table.lines[n] for n in kept]
    return Table(table.label, [table.rows[n] for n in kept], lines)


def _is_short(text: Any, min_characters: int) -> bool:
    return isinstance(text, str) and (len(text) <= min_characters or not text.strip())


def _lines(file: Path) -> Table:
    """Read a file with an object, a JSON string or bare text in each line.

    Raises:
        UserError: the file cannot be read, has no lines, or has an object that is not valid JSON.
    """
    numbered = [(number, line.rstrip("\r")) for number, line in lines_of(read_text(file))]
    if not numbered:
        raise UserError(f"{file}: the file has no rows")
    objects = isinstance(_parsed(numbered[0][1]), dict)
    rows = [_row(line, f"{file}, line {number}", objects=objects) for number, line in numbered]
    return Table(str(file), rows, [number for number, _ in numbered])


def _row(line: str, where: str, *, objects: bool) -> Row:
    """Return the row of a line; `objects`: whether the file begins with an object.

    Where it does not, a text may itself be JSON, such as a passage of code.
    """
    value = _parsed(line)
    if isinstance(value, dict) and (objects or "text" in value):
        return value
    if value is None and (_OBJECT.match(line) or (objects and line.lstrip().startswith("{"))):
        raise UserError(f"{where}: it begins as an object and is not valid JSON; repair the line")
    return {"text": value if isinstance(value, str) else line}


def _parsed(line: str) -> Any:
    """Return the value of a line of JSON, None for bare text."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
