"""TOFU (arXiv 2401.06121): fictitious authors, with every split of the hub's `locuslab/TOFU`.

`dataset.path` is that id or a local folder with the same files. A split may be cut: `retain90@0:1200`. As
`dataset.retain`, `@400:` is that part of the retain split that belongs to the forget split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from unlearn.config import DatasetConfig
from unlearn.data.columns import question_and_answer
from unlearn.data.example import Example
from unlearn.data.readers import content_hash, file_names, find_file, parse_split, read_split, slice_hint
from unlearn.errors import did_you_mean
from unlearn.paths import is_folder, repository_problem, user_path

HUB_SPLITS = (
    "full", "forget01", "forget05", "forget10", "retain99", "retain95", "retain90",
    "holdout01", "holdout05", "holdout10", "forget01_perturbed", "forget05_perturbed",
    "forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed",
)  # fmt: skip


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the split of each set; retain and holdout follow from forget (forget10 → retain90, holdout10).

    Without a holdout split in a local folder there is no such set.
    """
    forget = cfg.forget or "forget10"
    match = re.match(r"forget(\d\d)\b", forget)
    percent = int(match.group(1)) if match else None
    retain = f"retain{100 - percent:02}" if percent is not None else None
    if cfg.retain:
        retain = f"{retain}{cfg.retain}" if retain and cfg.retain.startswith("@") else cfg.retain
    holdout = cfg.holdout or (_offered(cfg, f"holdout{percent:02}") if percent is not None else None)
    named = {
        "forget": forget,
        "retain": retain,
        "full": cfg.full or "full",
        "holdout": holdout,
        "forget_eval": _perturbed(forget),
        "retain_eval": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }
    return {name: split for name, split in named.items() if split is not None}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    return {name: _read(cfg, split) for name, split in available(cfg).items() if name in names}


def check(cfg: DatasetConfig) -> list[str]:
    if not cfg.path:
        return ["dataset.path is not set: give locuslab/TOFU or a local folder with its files"]
    if problem := repository_problem(cfg.path):
        return [f"dataset.path={cfg.path}: {problem}"]
    known = file_names(user_path(cfg.path)) if is_folder(cfg.path) else list(HUB_SPLITS)
    problems = []
    for name, split in available(cfg).items():
        base = parse_split(split)[0]
        if base not in known:
            key = f"dataset.{name}={base}" if name in ("forget", "retain", "full", "holdout") else base
            problems.append(
                f"{key}: no such split in {cfg.path}{slice_hint(split) or did_you_mean(base, known)}"
            )
    return problems


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    named = {name: split for name, split in available(cfg).items() if name in names}
    folder = user_path(cfg.path or "")
    if not is_folder(folder):
        return {"path": cfg.path, "splits": named}
    files = {name: find_file(folder, parse_split(split)[0]) for name, split in named.items()}
    return {
        "rows": {name: str(parse_split(split)[1]) for name, split in named.items()},
        "files": {name: content_hash(f) for name, f in files.items() if f is not None},
    }


def retain_model(cfg: DatasetConfig) -> str | None:
    """Return the whole retain split, also where a method trains on a part of it and the target on `full`."""
    split = available(cfg).get("retain")
    whole, _ = parse_split(split or "")
    return whole if cfg.full is None and re.fullmatch(r"retain\d\d", whole) else split


def _offered(cfg: DatasetConfig, split: str) -> str | None:
    """Return the split if the folder or the hub has it, else None."""
    folder = user_path(cfg.path) if cfg.path else None
    if folder is None or is_folder(folder):
        return split if folder and find_file(folder, split) else None
    return split if split in HUB_SPLITS else None


def _perturbed(forget: str) -> str:
    name, at, rows = forget.partition("@")
    return f"{name}_perturbed{at}{rows}"


def _read(cfg: DatasetConfig, split: str) -> list[Example]:
    name, rows = parse_split(split)
    plain = name.removesuffix("_perturbed")
    table = read_split(cfg.path or "", name).cut(rows)
    return [question_and_answer(row, where, f"{plain}/{number}") for number, row, where in table]
