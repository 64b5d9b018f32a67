"""Your own questions and answers, or plain text: one json, jsonl or parquet file per set.

`dataset.forget=my_forget.jsonl dataset.retain=my_retain.jsonl`, relative to `dataset.path` if that is set.
Columns are `question` and `answer`, or `text`; `dataset.options.columns={question: q, answer: a}` renames
them. Optional columns are those of TOFU (`paraphrased_answer`, `perturbed_answer`) and `template`, a stand-in
answer for methods that train on one. A row that is a string instead of an object is a plain text.
`dataset.forget=file.jsonl@0:100` takes some rows, counted from 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unlearn.config import DatasetConfig, Section
from unlearn.data.columns import optional_text, question_and_answer, text_of
from unlearn.data.example import Example
from unlearn.data.readers import SUFFIXES, Row, Table, content_hash, parse_split, read_rows, slice_hint
from unlearn.errors import UserError
from unlearn.paths import file_problem, user_path

SETS = ("forget", "retain", "full", "holdout")


class Columns(Section):
    """Names of the columns in the files.

    - `question`: column of the questions.
    - `answer`: column of the answers.
    - `text`: column of plain texts, in a file without questions.
    - `template`: column of stand-in answers, for methods that train on one.
    """

    question: str = "question"
    answer: str = "answer"
    text: str = "text"
    template: str = "template"


class Options(Section):
    """Keys of `dataset.options`."""

    columns: Columns = Columns()


def files(cfg: DatasetConfig) -> dict[str, Path]:
    """Return the file of each configured set."""
    base = user_path(cfg.path or ".")
    configured = {name: file for name in SETS if (file := getattr(cfg, name)) is not None}
    return {name: base / user_path(parse_split(file)[0]) for name, file in configured.items()}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    wanted = set(names)
    sets = {
        name: _read(cfg, name, path) for name, path in files(cfg).items() if {name, f"{name}_eval"} & wanted
    }
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
        if problem := rows_problem(path, getattr(cfg, name)):
            problems.append(f"dataset.{name}={path}: {problem}")
    return problems


def rows_problem(path: Path, given: str, *, more: tuple[str, ...] = ()) -> str | None:
    """Return why a file of rows, or one with a suffix of `more`, cannot be read; `given` is its name."""
    can = (*more, *SUFFIXES)
    problem = file_problem(path)
    if problem is not None:
        return problem + slice_hint(given)
    readable = path.suffix.lower() in can
    return None if readable else f"cannot read {path.suffix or 'it'} (can: {', '.join(can)})"


def available(cfg: DatasetConfig) -> dict[str, str]:
    sets = {name: str(getattr(cfg, name)) for name in files(cfg)}
    sets |= {f"{name}_eval": sets[name] for name in ("forget", "retain") if name in sets}
    return {"full": "forget and retain", **sets}


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    wanted = {name.removesuffix("_eval") for name in names}
    if "full" in wanted and cfg.full is None:
        wanted |= {"forget", "retain"}
    own_files = {name: path for name, path in files(cfg).items() if name in wanted}
    return {
        "files": {name: content_hash(path) for name, path in own_files.items()},
        "rows": {name: str(parse_split(getattr(cfg, name))[1]) for name in own_files},
        "options": cfg.options,
    }


def example_of(row: Row, where: str, key: str, columns: Columns | None = None) -> Example:
    """Return one row of a file as an example with the id `key`; `where` describes its place.

    Raises:
        UserError: a column is absent or holds a wrong type.
    """
    named, columns = columns is not None, columns or Columns()
    template = optional_text(row, columns.template, where)
    if row.get(columns.question) is None and (columns.text in row or columns.question not in row):
        if columns.text in row:
            return Example(id=key, answer=text_of(row, columns.text, where), template=template)
        if not {columns.question, columns.answer} & row.keys():
            raise UserError(
                f"{where}: there are neither {columns.question!r} and {columns.answer!r} nor "
                f"{columns.text!r} (columns: {', '.join(map(str, row))}); name them, as "
                "dataset.options.columns={question: …, answer: …}"
            )
    for name in ("question", "answer"):
        if (column := getattr(columns, name)) not in row:
            advice = f"; name it by dataset.options.columns.{name}" if named else ""
            raise UserError(
                f"{where}: column {column!r} is missing (columns: {', '.join(map(str, row))}){advice}"
            )
    return question_and_answer(
        row, where, key, question=columns.question, answer=columns.answer, template=template
    )


def _read(cfg: DatasetConfig, name: str, path: Path) -> list[Example]:
    columns = Options(**cfg.options).columns
    table = read_rows(path, f"dataset.{name}={path}", text=columns.text)
    if name == "forget" and "template" in columns.model_fields_set:
        _check_template(table, columns.template)
    rows = table.cut(parse_split(getattr(cfg, name))[1])
    alike = any(other.stem == path.stem and other != path for other in files(cfg).values())
    stem = f"{name}/{path.stem}" if alike else path.stem  # ids are unique over all sets
    return [example_of(row, where, f"{stem}/{number}", columns) for number, row, where in rows]


def _check_template(table: Table, column: str) -> None:
    """Refuse a named column that no row has; single rows may lack it."""
    known = {str(name): None for row in table.rows for name in row}
    if column not in known:
        raise UserError(
            f"dataset.options.columns.template={column}: {table.label} has no such column (columns: "
            f"{', '.join(known)})"
        )
