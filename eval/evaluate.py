"""Evaluate one benchmark on one model: make requests, collect records, score."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from eval.benchmark import (
    READ,
    Baseline,
    LiveBenchmark,
    Result,
    Role,
    Sets,
    example_problems,
    find,
    is_live,
    options_of,
    read_along,
    reads_baseline,
    scored,
)
from eval.collection.collect import collect
from eval.collection.live_model import Live
from eval.collection.records import Records
from eval.configuration import own_sets
from unlearn.data.tokenization import Encoder
from unlearn.distributed import ALONE, World
from unlearn.files import BrokenFile, digest, read_json, replacing, write_json

log = logging.getLogger(__name__)
T = TypeVar("T")


def evaluate(
    model: nn.Module,
    encoder: Encoder,
    benchmark: str,
    sets: Sets,
    directory: Path,
    *,
    options: Mapping[str, Any] | None = None,
    roles: Sequence[Role] | None = None,
    retain_directory: Path | None = None,
    retain_log: Path | None = None,
    world: World = ALONE,
    max_tokens: int = 16_384,
    max_gradient_tokens: int | None = None,
    max_rows_generation: int = 128,
    progress: bool = False,
    device: torch.device | None = None,
    static_cache: bool = False,
) -> dict[str, float]:
    """Evaluate and return the metrics on every process; write records, results and examples to
    `directory/<benchmark>`.

    `sets` are a dataset's; the benchmark scores its own (those with one of `roles`). Records that an
    interrupted evaluation has written are kept. `retain_directory` is the same directory of the retain model,
    which is evaluated before; `retain_log` is a published log of it instead, for benchmarks that read one.
    `model` is the transformers model, not its engine; inputs are moved to `device` (default: that of its
    first parameter). A collective.

    Raises:
        BenchmarkError: no set to score.
        ConfigError: no such benchmark or option.
        UserError: it cannot be scored; raised on every process, so that each can go on with something else.
    """
    module = find(benchmark)
    chosen = options_of(module, options or {}, benchmark)
    input_device = device if device is not None else next(model.parameters()).device
    live = Live(
        model, encoder, directory / benchmark, world, max_tokens, max_rows_generation, input_device, progress,
        static_cache, max_gradient_tokens,
    )  # fmt: skip
    if is_live(module):
        read = {f"{READ}{name}": rows for name, rows in read_along(module, sets).items()}
        return _measure(module, benchmark, live, {**scored(module, sets, roles), **read}, chosen)
    own = own_sets(benchmark, sets, roles)
    collect(live, module.requests(own, chosen))
    return world.on_main(
        lambda: score_directory(
            benchmark, own, directory, options=options, retain_directory=retain_directory,
            retain_log=retain_log,
        ),
    )  # fmt: skip


def score_directory(
    benchmark: str,
    sets: Sets,
    directory: Path,
    *,
    options: Mapping[str, Any] | None = None,
    retain_directory: Path | None = None,
    retain_log: Path | None = None,
) -> dict[str, float]:
    """Score the records in `directory/<benchmark>`, without a model; write results and examples.

    `sets` have the benchmark's names. In results.json a metric that could not be measured (NaN) is null.
    problems.json lists problems of single examples, and words.json the tokenizer of each set's word counts.

    Raises:
        RecordsError: records are missing or belong to other examples.
    """
    module = find(benchmark)
    assert not is_live(module)
    chosen = options_of(module, options or {}, benchmark)
    read = Records(directory / benchmark)
    problems = [
        text for request in module.requests(sets, chosen) for text in example_problems(read, request.name)
    ]
    retain: Records | Baseline | None = None
    if retain_directory is not None:
        retain = Records(retain_directory / benchmark)
        if retain.tokenizer not in (None, read.tokenizer):
            problems.append(
                "the retain model has another tokenizer than this model, so their likelihoods per token are "
                "not comparable and were not compared: use a retain model of the same family"
            )
            retain = None
    elif retain_log is not None and reads_baseline(module):
        retain = module.read_baseline(retain_log)
    result = module.score(read, retain, sets, chosen)
    write_result(directory / benchmark, result, problems)
    return result.metrics


def _measure(module: LiveBenchmark, name: str, live: Live, sets: Sets, options: Any) -> dict[str, float]:
    """Return a live benchmark's metrics, read from disk if they were measured with the same settings."""
    mark = live.directory / "measured.json"
    settings = {"options": repr(options), "files": module.identity(options)}
    key = digest({**settings, "sets": {n: [asdict(e) for e in own] for n, own in sets.items()}})

    def known() -> dict[str, float] | None:
        try:
            if not mark.is_file() or read_json(mark).get("key") != key:
                return None
            stored = read_json(live.directory / "results.json")
        except FileNotFoundError:
            return None
        except BrokenFile as error:
            log.warning("%s: it is measured again", error.what)
            return None
        return {k: np.nan if v is None else v for k, v in stored.items()}

    def write() -> None:
        write_result(live.directory, result, [])
        write_json(mark, {"key": key})

    metrics = live.world.on_main(known)
    if metrics is not None:
        return metrics
    result = module.measure(live, sets, options)  # the same requests on all, so it fails on all or on none
    live.world.on_main(write)
    return result.metrics


def write_result(directory: Path, result: Result, problems: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    every = [*problems, *result.problems]
    for problem in every:
        log.warning("%s: %s", directory.name, problem)
    with replacing(directory / "examples.parquet") as path:
        pq.write_table(pa.Table.from_pylist(result.examples), path, compression="zstd")
    if every:
        write_json(directory / "problems.json", {"problems": every})
    else:
        (directory / "problems.json").unlink(missing_ok=True)
    if result.words:
        write_json(directory / "words.json", result.words)
    else:
        (directory / "words.json").unlink(missing_ok=True)
    write_json(directory / "results.json", result.metrics)
