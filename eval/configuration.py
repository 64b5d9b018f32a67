"""Derive from a configuration what the evaluation needs: sets of the dataset, options of benchmarks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval import variants
from eval.benchmark import (
    BENCHMARKS,
    BaselineBenchmark,
    BenchmarkError,
    Role,
    Sets,
    find,
    is_live,
    options_of,
    read_along,
    reads,
    reads_baseline,
    scored,
)
from eval.collection.requests import Request
from unlearn.config import RunConfig
from unlearn.data.readers import content_hash
from unlearn.data.sources import identity
from unlearn.errors import ConfigError, UserError
from unlearn.files import digest
from unlearn.paths import file_problem, user_path
from unlearn.plugins import named_by_data

log = logging.getLogger(__name__)

_NOT_IMPORTED: set[str] = set()
"""Benchmarks and variants of stored configurations that this process has reported."""


def evaluation_sets(config: RunConfig) -> set[str]:
    """Return the sets that the benchmarks score and the variants read; the dataset may lack some."""
    modules = [find(benchmark) for benchmark in config.eval.benchmarks]
    scored = {name for module in modules for name in (*module.SETS, *reads(module))}
    return scored | variants.sets(config.eval.variants)


def benchmark_options(config: RunConfig, name: str) -> dict[str, Any]:
    """Return a benchmark's options: its own, and those that the configuration sets for all benchmarks."""
    limit = config.eval.max_new_tokens
    knows = "max_new_tokens" in find(name).Options.model_fields
    common = {"max_new_tokens": limit} if limit is not None and knows else {}
    return common | dict(config.eval.benchmarks[name] or {})


def files_of(config: RunConfig) -> dict[str, Any]:
    """Return, by benchmark, what determines its questions in addition to its options and the dataset."""
    keys = {}
    for name in config.eval.benchmarks:
        module = find(name)
        if hasattr(module, "identity"):
            keys[name] = module.identity(options_of(module, benchmark_options(config, name), name))
    return {name: key for name, key in keys.items() if key}


def questions_key(config: RunConfig, log: Path | None) -> str:
    """Return a hash of what an evaluation reads from files: sets, questions, and the retain model's log."""
    sets = identity(config.dataset, evaluation_sets(config))
    return digest({"sets": sets, "files": files_of(config), "log": log and content_hash(log)})


def requests_of(benchmark: str, sets: Sets, options: Mapping[str, Any]) -> list[Request]:
    """Return the benchmark's requests to a model. No model is needed, so it can be called before loading one.

    A benchmark that calls the model itself has no requests; its options are checked.

    Raises:
        BenchmarkError: no set to score, or examples that it cannot score.
        ConfigError: no such benchmark or option.
    """
    module = find(benchmark)
    chosen = options_of(module, options, benchmark)
    if is_live(module):
        problems = module.check(chosen)
        if problems:
            raise BenchmarkError(f"benchmark {benchmark}: {'; '.join(problems)}")
        return []
    return module.requests(own_sets(benchmark, sets, None), chosen)


def tokenizer_problems(config: RunConfig, tokenizer: Any) -> list[str]:
    """Return why benchmarks cannot ask a model with this tokenizer, by dotted name."""
    return [
        f"eval.benchmarks.{name}.{problem}"
        for name in config.eval.benchmarks
        if (check := getattr(module := find(name), "check_tokenizer", None)) is not None
        for problem in check(options_of(module, benchmark_options(config, name), name), tokenizer)
    ]


def baseline_problems(config: RunConfig) -> list[str]:
    """Return why the published log of the retain model cannot be used; needs no model."""
    log = config.model.retain_log
    if log is None:
        return []
    readers = _baseline_readers(config.eval.benchmarks)
    if not readers and (problem := file_problem(log)):
        return [f"model.retain_log={log}: {problem}"]
    problems = []
    for benchmark in readers.values():
        try:
            benchmark.read_baseline(user_path(log))
        except UserError as error:
            problems.append(f"model.retain_log: {error}")
    return problems


def baseline_warnings(config: RunConfig) -> list[str]:
    """Say that a published log of the retain model is set, but no benchmark of the run reads one."""
    log = config.model.retain_log
    if log is None or _baseline_readers(config.eval.benchmarks):
        return []
    known = ", ".join(_baseline_readers(BENCHMARKS.names()))
    return [f"model.retain_log={log}: no benchmark of this run reads a published log (these do: {known})"]


def _baseline_readers(names: Iterable[str]) -> dict[str, BaselineBenchmark]:
    readers = {}
    for name in names:
        with suppress(ConfigError):  # an unknown benchmark is reported by another check
            if reads_baseline(module := find(name)):
                readers[name] = module
    return readers


def import_plug_ins(config: Mapping[str, Any]) -> None:
    """Import the benchmarks and variants that a stored configuration names, for what they declare.

    Those that cannot be imported here are reported, once: their metrics are shown without an arrow. So are
    packages of your own folders that are not installed, as the configuration may be of anybody.
    """
    section = config.get("eval")
    for key, find_one in (("benchmarks", find), ("variants", variants.find)):
        names = section.get(key) if isinstance(section, Mapping) else None
        for name in names if isinstance(names, Mapping) else ():
            try:
                with named_by_data():
                    find_one(str(name))
            except ConfigError as error:
                if name not in _NOT_IMPORTED:
                    log.warning("%s; its metrics have no direction here", error.problems[0])
                _NOT_IMPORTED.add(name)


def own_sets(benchmark: str, sets: Sets, roles: Sequence[Role] | None) -> Sets:
    """Return those of the sets that the benchmark scores, with one of `roles` (None: any), and that it reads.

    Raises:
        BenchmarkError: there are none.
    """
    module = find(benchmark)
    own = scored(module, sets, roles)
    if not own:
        raise BenchmarkError(
            f"benchmark {benchmark} scores {', '.join(module.SETS)}; the dataset has none of them "
            f"({', '.join(sets) or 'nothing'}): choose a dataset that has one, or another eval=…"
        )
    return {**own, **read_along(module, sets)}
