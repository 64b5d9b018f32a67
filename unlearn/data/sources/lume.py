"""LUME (arXiv 2502.15097), the data of SemEval-2025 Task 4: documents to complete, and questions about them.

`dataset.path` is a local folder with `forget` and `retain` as jsonl, json or parquet (columns `id`, `input`,
`output`, `task`) and, for the membership attack, `member` and `nonmember` (column `document`). Or it is the
hub's dataset, or a copy of its folder, whose splits are `forget_train`, `forget_validation` and those of
retain. The hub's needs a registration with the organisers. A split may be cut: `forget_train@0:200`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unlearn.config import DatasetConfig
from unlearn.data.columns import text_of
from unlearn.data.example import Example
from unlearn.data.readers import (
    Row,
    UnavailableError,
    content_hash,
    find_file,
    parse_split,
    read_rows,
    slice_hint,
)
from unlearn.errors import UserError, did_you_mean
from unlearn.paths import is_folder, repository_problem, user_path

HUB_SPLITS = ("forget_train", "retain_train", "forget_validation", "retain_validation")
ATTACK = ("member", "nonmember")
_KINDS = {"sc": "regurgitation", "qa": "knowledge"}
_SHARD = "-00000-of-00001"


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the split of each set; retain follows from forget (forget_train → retain_train)."""
    named = _splits(cfg)
    named |= {f"{name}_eval": named[name] for name in ("forget", "retain")}
    return {**named, "full": cfg.full or "forget and retain"}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    wanted = set(names)
    sets: dict[str, list[Example]] = {}
    for name, split in _splits(cfg).items():
        names_of_set = {name, f"{name}_eval"} & wanted
        if names_of_set or (name in ("forget", "retain") and "full" in wanted and cfg.full is None):
            sets |= dict.fromkeys({name, *names_of_set}, _read(cfg, split))
    if "full" in wanted:
        sets["full"] = _read(cfg, cfg.full) if cfg.full is not None else sets["forget"] + sets["retain"]
    return {name: rows for name, rows in sets.items() if name in wanted}


def check(cfg: DatasetConfig) -> list[str]:
    if not cfg.path:
        return ["dataset.path is not set: give the id of LUME's dataset on the hub or a local folder"]
    if problem := repository_problem(cfg.path):
        return [f"dataset.path={cfg.path}: {problem}"]
    folder = user_path(cfg.path)
    local = is_folder(folder)
    splits = _splits(cfg)
    problems = []
    for name, split in {**splits, **({"full": cfg.full} if cfg.full else {})}.items():
        base = parse_split(split)[0]
        if local and _file(folder, base) is None:
            problems.append(
                f"dataset.{name}={base}: {folder} has no {base}.jsonl, .json or .parquet{slice_hint(split)}"
            )
        elif not local and base not in (*HUB_SPLITS, *ATTACK):
            problems.append(
                f"dataset.{name}={base}: no such split{slice_hint(split) or did_you_mean(base, HUB_SPLITS)}"
            )
    if len(present := [name for name in ATTACK if name in splits]) == 1:
        problems.append(
            f"{folder} has {present[0]} alone: the membership attack needs {' and '.join(ATTACK)}"
        )
    return problems


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    wanted = {name.removesuffix("_eval") for name in names}
    named = _splits(cfg) | ({"full": cfg.full} if cfg.full is not None else {})
    if "full" in wanted and cfg.full is None:
        wanted |= {"forget", "retain"}
    used = {name: split for name, split in named.items() if name in wanted}
    folder = user_path(cfg.path or "")
    if not is_folder(folder):
        return {"path": cfg.path, "splits": used}
    files = {name: _file(folder, parse_split(split)[0]) for name, split in used.items()}
    return {
        "rows": {name: str(parse_split(split)[1]) for name, split in used.items()},
        "files": {name: content_hash(path) for name, path in files.items() if path is not None},
    }


def _splits(cfg: DatasetConfig) -> dict[str, str]:
    folder = user_path(cfg.path or "")
    local = is_folder(folder)
    plain = local and _file(folder, "forget") is not None
    forget = cfg.forget or ("forget" if plain else "forget_train")
    named = {"forget": forget, "retain": cfg.retain or parse_split(forget)[0].replace("forget", "retain", 1)}
    if cfg.holdout is not None:
        named["holdout"] = cfg.holdout
    return named | {name: name for name in ATTACK if not local or _file(folder, name) is not None}


def _file(folder: Path, split: str) -> Path | None:
    """Return the file of a split, in a plain folder or a copy of the hub's; None if there is none."""
    places = ((folder / part, stem) for part in ("", "data", "mia_data") for stem in (split, split + _SHARD))
    return next((path for place, stem in places if (path := find_file(place, stem)) is not None), None)


def _download(path: str, split: str) -> Path:
    from huggingface_hub import hf_hub_download

    # File by file: the splits and the attack's documents have different columns.
    name = f"mia_data/{split}.jsonl" if split in ATTACK else f"data/{split}{_SHARD}.parquet"
    try:
        return Path(hf_hub_download(path, name, repo_type="dataset"))
    except Exception as error:
        raise UnavailableError(
            f"dataset.path={path}: could not get {name} from the hub ({type(error).__name__}: {error}); "
            "it is open to those who registered at https://llmunlearningsemeval2025.github.io: log in with "
            "`hf auth login`, or give a local folder with forget.jsonl and retain.jsonl"
        ) from error


def _read(cfg: DatasetConfig, split: str) -> list[Example]:
    name, rows = parse_split(split)
    path = cfg.path or ""
    file = _file(user_path(path), name) if is_folder(path) else _download(path, name)
    if file is None:
        raise UserError(f"{path} has no {name}.jsonl, .json or .parquet")
    if name in ATTACK:
        table = read_rows(file, text="document").cut(rows)
        return [Example(f"{name}/{number}", text_of(row, "document", where)) for number, row, where in table]
    table = read_rows(file).cut(rows)
    examples = [_example(row, name, where) for _, row, where in table]
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"{file}: two rows have the id {example.id.removeprefix(name + '/')}")
        seen.add(example.id)
    return examples


def _example(row: Row, name: str, where: str) -> Example:
    # Some ids of the published files have stray quotation marks in them.
    key = text_of(row, "id", where).replace('"', "")
    kind = re.search(r"(sc|qa)\d+$", key)
    if kind is None:
        raise UserError(f"{where}: the id {key!r} ends neither in sc1 (completion) nor in qa0 (question)")
    task = text_of(row, "task", where).strip().lower()
    return Example(
        id=f"{name}/{key}",
        question=text_of(row, "input", where),
        answer=text_of(row, "output", where),
        group=f"{task}/{_KINDS[kind.group(1)]}",
    )
