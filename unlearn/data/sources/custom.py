"""Your own questions and answers, or plain text: one json, jsonl or parquet file per set.

`dataset.forget=my_forget.jsonl dataset.retain=my_retain.jsonl`, relative to `dataset.path` if that is set.
Columns are `question` and `answer`, or `text`; `dataset.options.columns={question: q, answer: a}` renames
them. The further columns of TOFU (`paraphrased_answer`, `perturbed_answer`) are used where they are there,
and so is `template`, a stand-in answer for methods that train on one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unlearn.config import DatasetConfig, Section
from unlearn.data.example import Example
from unlearn.data.sources.tables import SUFFIXES, Row, content_hash, parse_split, read_file, text_of

SETS = ("forget", "retain", "full", "holdout")


class Columns(Section):
    """Names of the columns in the files."""

    question: str = "question"
    answer: str = "answer"
    text: str = "text"
    template: str = "template"


def files(cfg: DatasetConfig) -> dict[str, Path]:
    """Set → file, for the sets that are configured."""
    base = Path(cfg.path or ".")
    return {name: base / parse_split(f)[0] for name in SETS if (f := getattr(cfg, name)) is not None}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    wanted = set(names)
    columns = Columns(**cfg.options.get("columns", {}))
    found = files(cfg)
    sets = {}
    for name, path in found.items():
        rows = parse_split(getattr(cfg, name))[1]
        if {name, f"{name}_eval"} & wanted:
            numbered = list(enumerate(read_file(path)))[rows]
            sets[name] = [example_of(row, path, number, columns) for number, row in numbered]
    for name in ("forget", "retain"):
        if name in sets and f"{name}_eval" in wanted:
            sets[f"{name}_eval"] = sets[name]
    if "full" not in sets and "full" in wanted:
        parts = load(cfg, ("forget", "retain"))
        sets["full"] = [example for part in parts.values() for example in part]
    return {name: rows for name, rows in sets.items() if name in wanted}


def check(cfg: DatasetConfig) -> list[str]:
    problems = []
    if cfg.forget is None:
        problems.append("dataset.forget is not set: give a json, jsonl or parquet file of what to forget")
    for name, path in files(cfg).items():
        if not path.is_file():
            problems.append(f"dataset.{name}={path}: there is no such file")
        elif path.suffix not in SUFFIXES:
            problems.append(f"dataset.{name}={path}: cannot read {path.suffix} (can: {', '.join(SUFFIXES)})")
    return problems


def available(cfg: DatasetConfig) -> dict[str, str]:
    sets = {name: str(getattr(cfg, name)) for name in files(cfg)}
    sets |= {f"{name}_eval": sets[name] for name in ("forget", "retain") if name in sets}
    return {"full": "forget and retain", **sets}


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    wanted = {name.removesuffix("_eval") for name in names}
    if "full" in wanted and cfg.full is None:
        wanted |= {"forget", "retain"}
    found = {name: path for name, path in files(cfg).items() if name in wanted}
    return {
        "files": {name: content_hash(path) for name, path in found.items()},
        "rows": {name: str(parse_split(getattr(cfg, name))[1]) for name in found},
        "options": cfg.options,
    }


def example_of(row: Row, path: Path, number: int, columns: Columns | None = None) -> Example:
    """One row of a file.

    Raises:
        UserError: a column is absent or not text.
    """
    columns = columns or Columns()
    where, key = f"{path}, row {number}", f"{path.stem}/{number}"
    template = text_of(row, columns.template, where) if row.get(columns.template) is not None else None
    if columns.text in row and columns.question not in row:
        return Example(id=key, answer=text_of(row, columns.text, where), template=template)
    return Example(
        id=key,
        question=text_of(row, columns.question, where),
        answer=text_of(row, columns.answer, where),
        paraphrased_answer=row.get("paraphrased_answer"),
        perturbed_answers=tuple(row.get("perturbed_answer") or ()),
        paraphrased_question=row.get("paraphrased_question"),
        template=template,
    )
