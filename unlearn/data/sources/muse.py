"""MUSE News and Books (arXiv 2407.06460): articles or books to forget, as plain text.

`dataset.path` is `muse-bench/MUSE-News`, `muse-bench/MUSE-Books`, or a local folder of the same shape: a file
`<config>/<split>.json`, `.jsonl` or `.parquet` for each split, or a download of the hub's dataset as it is.
A split is named `<config>/<split>`. It may be cut (`raw/forget@0:100`), and several may be joined with `+`.

`dataset.forget` is `raw/forget`, or one of `scal/forget_1` … `scal/forget_4`, each of which contains the one
before, or one of `sust/forget_1` … `sust/forget_4`, disjoint requests that follow one another (`before`). The
retain set is `raw/retain1`. The published targets were trained on all three splits of the config `train`,
which are the set `full` (in a folder without `train`: the forget set with its other folds, and both retain
splits). The questions on the retain set are about `retain2`, so a retain model is trained on both retain
splits (`retain_model`).

Training reads a split as one long text with blank lines between the articles, as the released code does:
`Encoder.chunks` cuts it into full sequences. `dataset.options.joined=false` keeps the articles separate.
`dataset.limit` counts articles, and likewise the few-shot examples of the questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unlearn.config import DatasetConfig, Section
from unlearn.data.columns import text_of
from unlearn.data.example import Example
from unlearn.data.readers import (
    Row,
    content_hash,
    file_names,
    find_file,
    parse_split,
    read_rows,
    read_split,
    slice_hint,
)
from unlearn.errors import did_you_mean
from unlearn.paths import is_folder, repository_problem, user_path

_SHARD = "-00000-of-00001"
_BOTH = tuple(
    f"{config}/{split}" for config in ("raw", "train") for split in ("forget", "retain1", "retain2")
)
_PROBES = {
    "verbmem": "verbmem/forget",
    "knowmem_forget": "knowmem/forget_qa",
    "knowmem_forget_icl": "knowmem/forget_qa_icl",
    "knowmem_retain": "knowmem/retain_qa",
    "knowmem_retain_icl": "knowmem/retain_qa_icl",
    "privleak_forget": "privleak/forget",
    "privleak_retain": "privleak/retain",
    "privleak_holdout": "privleak/holdout",
}
_NEWS_ONLY = tuple(f"{config}/forget_{fold}" for config in ("scal", "sust") for fold in range(1, 5))
_BOOKS = (*_BOTH, "raw/holdout", *_PROBES.values())
_COLUMNS = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer")}
_JOINED = ("forget", "retain", "full")


class Options(Section):
    """Keys of `dataset.options`.

    - `joined`: train on each split as one long text; otherwise its articles stay separate.
    """

    joined: bool = True


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the split of each set; of a local folder, without sets that have no file and were not named."""
    forget, retain = cfg.forget or "raw/forget", cfg.retain or "raw/retain1"
    known = _known(cfg)
    splits = {
        "forget": forget,
        "retain": retain,
        "full": cfg.full or "+".join([*_all_of(forget, known), *_retained(known)]),
        "holdout": cfg.holdout or "raw/holdout",
        **_PROBES,
    }
    named = {"forget"} | {name for name in ("retain", "full", "holdout") if getattr(cfg, name)}
    return {
        name: split
        for name, split in splits.items()
        if name in named or all(part in known for part, _ in _parts(split))
    }


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    joined = Options(**cfg.options).joined
    wanted = set(names)
    return {
        name: _read(cfg, split, joined=joined and name in _JOINED)
        for name, split in available(cfg).items()
        if name in wanted
    }


def check(cfg: DatasetConfig) -> list[str]:
    if not cfg.path:
        return ["dataset.path is not set: give muse-bench/MUSE-News, muse-bench/MUSE-Books or a local folder"]
    if problem := repository_problem(cfg.path):
        return [f"dataset.path={cfg.path}: {problem}"]
    known, has, problems = _known(cfg), available(cfg), []
    for name in ("forget", "retain", "full", "holdout"):
        missing = [part for part, _ in _parts(has.get(name, "")) if part and part not in known]
        problems += [
            f"dataset.{name}={m}: no such split in {cfg.path}{slice_hint(m) or did_you_mean(m, known)}"
            for m in missing
        ]
    problems += [
        f"dataset.forget={cfg.forget}: request {earlier} comes before it, and {cfg.path} does not have it"
        for earlier in before(cfg)
        if earlier not in known
    ]
    for name in ("knowmem_forget", "knowmem_retain"):
        if name in has and f"{name}_icl" not in has:
            problems.append(
                f"{cfg.path} has {_PROBES[name]} but not {_PROBES[f'{name}_icl']}, the few-shot examples of "
                "its prompts: add the file"
            )
    return problems


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    named = {name: split for name, split in available(cfg).items() if name in set(names)}
    options = Options(**cfg.options).model_dump() if set(named) & set(_JOINED) else {}
    folder = user_path(cfg.path or "")
    if not is_folder(folder):
        return {"path": cfg.path, "splits": named, "options": options}
    parts = {name: _parts(split) for name, split in named.items()}
    files = {name: [_file(folder, part) for part, _ in some] for name, some in parts.items()}
    return {
        "rows": {name: [str(rows) for _, rows in some] for name, some in parts.items()},
        "files": {name: [content_hash(f) for f in some if f is not None] for name, some in files.items()},
        "options": options,
    }


def before(cfg: DatasetConfig) -> list[str]:
    """Return the forget splits of earlier requests, in order; the run starts from the model after them.

    `sust/forget_3` → `["sust/forget_1", "sust/forget_2"]`; [] for any split but those of `sust`.
    """
    match = re.fullmatch(r"sust/forget_(\d+)", parse_split(cfg.forget or "")[0])
    return [f"sust/forget_{earlier}" for earlier in range(1, int(match.group(1)))] if match else []


def retain_model(cfg: DatasetConfig) -> str:
    """Return the splits that a retain model is trained on: those of the target without the forget set."""
    return "+".join(_retained(_known(cfg)))


def _retained(known: list[str]) -> list[str]:
    config = "train" if "train/retain1" in known else "raw"
    return [f"{config}/retain1", f"{config}/retain2"]


def _all_of(forget: str, known: list[str]) -> list[str]:
    """Return the splits to forget that the target is trained on, the same for every fold."""
    if "train/forget" in known:
        return ["train/forget"]
    config = forget.split("/")[0]
    folds = [name for name in known if name.startswith(f"{config}/forget_")]
    return {"sust": folds, "scal": folds[-1:]}.get(config) or [forget]


def _known(cfg: DatasetConfig) -> list[str]:
    """Return the splits that exist: of a local folder by its files, of the hub from a list here."""
    folder = user_path(cfg.path or "")
    if not cfg.path or not is_folder(folder):
        return [*_BOOKS] if "books" in (cfg.path or "").lower() else [*_BOOKS, *_NEWS_ONLY]
    return sorted(
        f"{part.name}/{name.removesuffix(_SHARD)}"
        for part in folder.iterdir()
        if part.is_dir()
        for name in file_names(part)
    )


def _parts(split: str) -> list[tuple[str, slice]]:
    return [parse_split(part) for part in split.split("+")]


def _file(folder: Path, name: str) -> Path | None:
    return find_file(folder, f"{name}{_SHARD}") or find_file(folder, name)


def _read(cfg: DatasetConfig, split: str, *, joined: bool) -> list[Example]:
    all_examples = []
    for part in split.split("+"):
        name, rows = parse_split(part)
        folder = user_path(cfg.path or "")
        file = _file(folder, name) if is_folder(folder) else None
        table = read_split(cfg.path or "", name) if file is None else read_rows(file)
        columns = _COLUMNS.get(name.split("/")[0])
        examples = [
            _example(row, columns, f"{name}/{number}", where)
            for number, row, where in table.cut(rows)[: cfg.limit]
        ]
        if joined and columns is None and examples:
            examples = [Example(id=part, answer="\n\n".join(example.answer for example in examples))]
        all_examples += examples
    return all_examples


def _example(row: Row, columns: tuple[str, str] | None, key: str, where: str) -> Example:
    if columns is None:
        return Example(id=key, answer=text_of(row, "text", where))
    question, answer = (text_of(row, column, where) for column in columns)
    return Example(id=key, question=question, answer=answer)
