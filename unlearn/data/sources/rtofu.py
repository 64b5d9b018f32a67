r"""R-TOFU (arXiv 2505.15214): TOFU's questions with a reasoning trace before each answer.

`dataset.path` is a folder with the files of its repository (github.com/ssangyeon/R-TOFU, `data/tofu`):
`forget01.json` and the others of the training sets, with `question`, `answer`, `cot` and in the forget files
`task_id`; and, where there are, `retain_perturbed.json`, `real_authors_perturbed.json` and
`world_facts_perturbed.json` for evaluation.

A forget file holds ten tasks; `dataset.options.task` chooses one, and the rows of the others belong to the
retain set, as in its code. The retain split follows from the forget split: forget01 → retain90, forget05 →
retain50, forget10 → retain10. A target is trained on both files, with trace and answer.

An answer is the trace, `\n</think>\n\n` and the answer proper. The model's prompt ends in `<think>\n`, as
that of `model=r1-distill-llama-8b` does. `dataset.options.train` chooses the part of the forget answers that
carries the loss; what comes before it belongs to the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from unlearn.config import DatasetConfig, Section
from unlearn.data.columns import text_of
from unlearn.data.example import Example
from unlearn.data.readers import Row, content_hash, file_names, find_file, parse_split, read_rows, slice_hint
from unlearn.errors import UserError, did_you_mean, listed
from unlearn.paths import folder_problem, is_folder, user_path

END_OF_TRACE = "\n</think>\n\n"
RETAIN = {"forget01": "retain90", "forget05": "retain50", "forget10": "retain10"}
_SCORED = {
    "retain_eval": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}


class Options(Section):
    """Keys of `dataset.options`.

    - `task`: the `task_id` to forget, of the ten of a forget file.
    - `train`: the part of a forget answer that is trained on: `cot_answer`, the `answer` after the true
      trace, or the trace alone, `cot`.
    """

    task: PositiveInt = 1
    train: Literal["cot_answer", "answer", "cot"] = "cot_answer"


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the split of each set; those of evaluation where the folder has their files."""
    forget = cfg.forget or "forget01"
    retain = cfg.retain or RETAIN.get(parse_split(forget)[0])
    sets = {"forget": forget, "forget_eval": forget}
    if retain is not None:
        sets |= {"retain": retain, "full": cfg.full or f"{parse_split(forget)[0]} and {retain}"}
    folder = user_path(cfg.path or "")
    return sets | {name: file for name, file in _SCORED.items() if _file(folder, file) is not None}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    splits = available(cfg)
    return {name: _set(cfg, name, splits) for name in names if name in splits}


def check(cfg: DatasetConfig) -> list[str]:
    if not cfg.path:
        return ["dataset.path is not set: give a folder with R-TOFU's files (data/tofu of its repository)"]
    if problem := folder_problem(cfg.path):
        return [f"dataset.path={cfg.path}: {problem}"]
    folder, splits = user_path(cfg.path), available(cfg)
    named: dict[str, str] = {name: splits[name] for name in ("forget", "retain") if name in splits}
    named |= {"full": cfg.full} if cfg.full is not None else {}
    problems = [
        f"dataset.{name}={base}: {folder} has no {base}.json, .jsonl or .parquet"
        f"{slice_hint(split) or did_you_mean(base, file_names(folder))}"
        for name, split in named.items()
        if _file(folder, base := parse_split(split)[0]) is None
    ]
    if cfg.holdout is not None:
        problems.append(f"dataset.holdout={cfg.holdout}: R-TOFU has no holdout set; leave it out")
    if "retain" not in splits:
        problems.append(
            f"dataset.retain is not set, and does not follow from dataset.forget={splits['forget']}: name a "
            f"file of the folder (it follows from {', '.join(RETAIN)})"
        )
    return problems


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    folder, splits = user_path(cfg.path or ""), available(cfg)
    wanted = {name: splits[name] for name in set(names) & splits.keys()}
    # The rows of other tasks of the forget file are part of retain and full.
    used = {parse_split(split)[0] for name, split in splits.items() if name in ("forget", "retain")}
    used |= {parse_split(split)[0] for name, split in wanted.items() if name != "full" or cfg.full}
    files = {name: file for name in sorted(used) if (file := _file(folder, name)) is not None}
    hashes = {name: content_hash(file) for name, file in files.items()}
    known = {"splits": wanted, "files": hashes, "options": Options(**cfg.options).model_dump()}
    # Until it had the other tasks of the forget file it was another set.
    return known | ({"full": "with other tasks"} if _full_is_retain(cfg, splits) and "full" in wanted else {})


def _file(folder: Path, split: str) -> Path | None:
    return find_file(folder, split) if is_folder(folder) else None


def _full_is_retain(cfg: DatasetConfig, splits: dict[str, str]) -> bool:
    """Return whether `full` is what a retain model is trained on: all that is kept."""
    return cfg.full is not None and cfg.full == splits.get("retain")


def _set(cfg: DatasetConfig, name: str, splits: dict[str, str]) -> list[Example]:
    options, forget = Options(**cfg.options), splits["forget"]
    if name in ("forget", "forget_eval"):
        train = options.train if name == "forget" else "cot_answer"
        return _read(cfg, forget, own=True, train=train)
    if name == "retain" or (name == "full" and _full_is_retain(cfg, splits)):
        others = _read(cfg, parse_split(forget)[0], own=False)
        return _read(cfg, splits["retain"]) + others
    if name == "full" and cfg.full is None:
        return _read(cfg, parse_split(forget)[0]) + _read(cfg, splits["retain"])
    return _read(cfg, splits[name])


def _read(
    cfg: DatasetConfig, split: str, *, own: bool | None = None, train: str = "cot_answer"
) -> list[Example]:
    """Read the rows of the task to forget (`own`), of the other tasks, or all of a file.

    Raises:
        UserError: there is no such file, or it has no row of the task.
    """
    name, rows = parse_split(split)
    file, task = _file(user_path(cfg.path or ""), name), str(Options(**cfg.options).task)
    if file is None:
        raise UserError(f"{cfg.path} has no {name}.json, .jsonl or .parquet")
    table = read_rows(file).cut(slice(None))
    if own is not None:
        tasks = [_task(row, where) for _, row, where in table]
        table = [each for each, of in zip(table, tasks, strict=True) if (of == task) is own]
        if own and not table:
            known = listed(sorted(set(tasks)), 10)
            raise UserError(f"{file}: no row has the task_id of dataset.options.task={task} (it has {known})")
    if rows != slice(None) and not table[rows]:
        raise UserError(f"{file}: {split} selects none of the {len(table)} rows")
    return [_example(row, where, f"{name}/{number}", train) for number, row, where in table[rows]]


def _task(row: Row, where: str) -> str:
    if "task_id" not in row:
        raise UserError(f"{where}: column 'task_id' is missing, which tells the tasks of a forget file apart")
    return str(row["task_id"])


def _example(row: Row, where: str, key: str, train: str) -> Example:
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    if not row.get("cot"):  # the files for evaluation have none
        if train != "cot_answer":
            raise UserError(f"{where}: column 'cot' is empty, which dataset.options.train={train} needs")
        return Example(key, answer, question)
    trace = text_of(row, "cot", where)
    if train == "answer":
        return Example(key, answer, question, opening=trace + END_OF_TRACE)
    return Example(key, trace if train == "cot" else trace + END_OF_TRACE + answer, question)
