"""RWKU (arXiv 2406.10890, data CC-BY-4.0): famous people to forget, of whom a model knows from pre-training.

`dataset.path` is `jinzhuoran/RWKU` or a local folder with its files: those of `All/` on the hub, of a
person's folder under `Target/`, or of the hub's configurations (`forget_level1.json`, `mia_forget.json` …);
they may end in `.json`, `.jsonl` or `.parquet`. `dataset.options.targets` names the people.

The texts to forget are written by a model: there is no other forget corpus and no retain corpus, by design.
`dataset.forget` chooses what is trained on:

- `positive`: texts about the person, as plain texts (the authors' GA and NPO),
- `negative`: fabricated texts about the person, as plain texts,
- `pair`: a prompt with the text of `positive` as the answer and that of `negative` as the alternative (DPO,
  with `method.alternatives.source=column`),
- `refusal`: questions with refusals as answer and as alternative (rejection tuning, `method=idk` with
  `method.alternatives.source=column` and `method.retain=null`),
- `passage`: the person's Wikipedia article, as a plain text.

The sets of probes have the hub's names. A question of `utility_general` and `utility_reason` is a whole
prompt with its examples; in `utility_general` the answers are letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from unlearn.config import DatasetConfig, Section
from unlearn.data.columns import optional_text, text_of, texts_of
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
from unlearn.data.sources._rwku_utility import UTILITY
from unlearn.errors import UserError, did_you_mean, listed
from unlearn.paths import is_folder, repository_problem, user_path

CORPORA = {
    "positive": ("train_positive_{}", "positive"),
    "negative": ("train_negative_{}", "negative"),
    "pair": ("train_pair_{}", "pair"),
    "refusal": ("train_refusal_{}", "reject"),
    "passage": ("train_original_passage", "passage"),
}
"""What can be trained on: the name of the hub's configuration, and that of the file."""
_FILES = {
    "mia_forget": "forget_mia",
    "mia_retain": "retain_mia",
    "utility_general": "retain_mmlu",
    "utility_reason": "retain_bbh",
    "utility_truthfulness": "truthful",
    "utility_factuality": "triviaqa",
    "utility_fluency": "fluency",
}
_LEVELS = ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2")
PROBES = (*_LEVELS, *_FILES)
_WRITERS = {"llama3": "", "phi3": "_phi"}


class Options(Section):
    """Keys of `dataset.options`.

    - `targets`: the names of the people, as the files write them; the authors unlearn one at a time. None are
      all people of the files.
    - `writer`: the model that wrote the texts of `dataset.forget`, Llama 3 (8B Instruct) or Phi 3 (mini).
    """

    targets: tuple[str, ...] = ()
    writer: Literal["llama3", "phi3"] = "llama3"


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the corpus of each training set, and the probes of which there is a file."""
    forget = cfg.forget or "positive"
    trained = {"forget": forget, "full": cfg.full or forget}
    if cfg.holdout is not None:
        trained["holdout"] = cfg.holdout
    local = is_folder(folder := user_path(cfg.path or ""))
    return trained | {name: name for name in PROBES if not local or _file(folder, _names(name)) is not None}


def load(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    wanted = set(names)
    return {name: _read(cfg, split) for name, split in available(cfg).items() if name in wanted}


def check(cfg: DatasetConfig) -> list[str]:
    if not cfg.path:
        return ["dataset.path is not set: give jinzhuoran/RWKU, or a local folder with its files"]
    if problem := repository_problem(cfg.path):
        return [f"dataset.path={cfg.path}: {problem}"]
    problems = []
    if cfg.retain is not None:
        problems.append(
            f"dataset.retain={cfg.retain}: RWKU has no retain corpus, by design; leave it out, and choose a "
            "method without a retain term"
        )
    folder, options = user_path(cfg.path), Options(**cfg.options)
    named = {"forget": available(cfg)["forget"], "full": cfg.full, "holdout": cfg.holdout}
    for name, split in named.items():
        if split is None:
            continue
        if (corpus := parse_split(split)[0]) not in CORPORA:
            hint = slice_hint(split) or did_you_mean(corpus, CORPORA)
            problems.append(f"dataset.{name}={corpus}: no such corpus{hint}")
        elif is_folder(folder) and _file(folder, files := _names(corpus, options)) is None:
            problems.append(f"dataset.{name}={corpus}: {folder} has no {_described(files)}")
    return list(dict.fromkeys(problems))


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    options = Options(**cfg.options)
    splits = {name: split for name, split in available(cfg).items() if name in set(names)}
    known = {"splits": splits, "options": options.model_dump()}
    folder = user_path(cfg.path or "")
    if not is_folder(folder):
        return {"path": cfg.path, **known}
    used = sorted({parse_split(split)[0] for split in splits.values()})
    files = {each: _file(folder, _names(each, options)) for each in used}
    return {"files": {each: content_hash(file) for each, file in files.items() if file is not None}, **known}


def _names(split: str, options: Options | None = None) -> tuple[str, str]:
    """Return the names that the file of a set or a corpus may have, that on the hub last."""
    if split not in CORPORA:
        return split, _FILES.get(split, split)
    config, file = CORPORA[split]
    writer = "llama3" if options is None else options.writer
    return config.format(writer), file + (_WRITERS[writer] if "{}" in config else "")


def _described(names: tuple[str, str]) -> str:
    return f"{' or '.join(dict.fromkeys(names))} (.json, .jsonl or .parquet)"


def _file(folder: Path, names: tuple[str, str]) -> Path | None:
    places = ((place, name) for place in (folder, folder / "All") for name in names)
    return next((file for place, name in places if (file := find_file(place, name)) is not None), None)


def _download(path: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, f"All/{name}.json", repo_type="dataset"))
    except Exception as error:
        raise UnavailableError(
            f"dataset.path={path}: could not get All/{name}.json from the hub ({type(error).__name__}: "
            f"{error}); a local folder with the same files works too"
        ) from error


def _read(cfg: DatasetConfig, split: str) -> list[Example]:
    name, rows = parse_split(split)
    options, path = Options(**cfg.options), cfg.path or ""
    names = _names(name, options)
    file = _file(user_path(path), names) if is_folder(path) else _download(path, names[-1])
    if file is None:
        raise UserError(f"{path} has no {_described(names)}")
    make = _MAKE.get(name, _probe)
    table = [each for each in read_rows(file).cut(slice(None)) if _is_of(each[1], options.targets)]
    if not table:
        raise UserError(f"{file}: {_no_rows(file, options.targets)}")
    chosen = table[rows]
    if not chosen:
        raise UserError(f"{file}: {split} selects none of the {len(table)} rows of dataset.options.targets")
    return [make(row, where, f"{name}/{number}") for number, row, where in chosen]


def _is_of(row: Row, targets: tuple[str, ...]) -> bool:
    # Rows without a subject belong to no person: they are for everybody.
    return not targets or "subject" not in row or row["subject"] in targets


def _no_rows(file: Path, targets: tuple[str, ...]) -> str:
    known = sorted({str(row["subject"]) for row in read_rows(file).rows if row.get("subject")})
    near = "".join(dict.fromkeys(did_you_mean(target, known) for target in targets))
    hint = near if "did you mean" in near else f" (it has {listed(known, 3)})"
    return f"no row is about dataset.options.targets={listed(targets, 3)}{hint}"


def _probe(row: Row, where: str, key: str) -> Example:
    # An attack probe names its type.
    return Example(
        key, text_of(row, "answer", where), text_of(row, "query", where),
        group=optional_text(row, "type", where),
    )  # fmt: skip


def _text(row: Row, where: str, key: str) -> Example:
    return Example(key, text_of(row, "text", where))


def _pair(row: Row, where: str, key: str) -> Example:
    answers = texts_of(row, "response", where)
    if len(answers) != 2:
        raise UserError(
            f"{where}: column 'response' holds {len(answers)} texts, but must hold two: the fabricated one "
            "and the other"
        )
    return Example(key, answers[1], text_of(row, "prompt", where), template=answers[0])


def _refusal(row: Row, where: str, key: str) -> Example:
    refusal = text_of(row, "output", where)
    return Example(key, refusal, text_of(row, "instruction", where), template=refusal)


_MAKE: Mapping[str, Callable[[Row, str, str], Example]] = {
    "positive": _text,
    "negative": _text,
    "passage": _text,
    "pair": _pair,
    "refusal": _refusal,
    "mia_forget": _text,
    "mia_retain": _text,
    **UTILITY,
}
