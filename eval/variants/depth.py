"""How deep the unlearning is: what the unlearned model's states, put into the target, still say.

Answers may be gone from a model's output and present in its states. Activation patching measures the states:
the target reads question and true answer, and the output of one block, where it predicts the answer, is
overwritten by another model's. What the answer's log-probability loses was not in those states. The retain
model's loss says which blocks encode the answer; the unlearned model's, relative to it, how far each is
erased. `depth/uds` is the unlearning depth score (arXiv 2605.24614): 0 for the target itself, 1 for the
retain model. `depth/logit_lens` compares in the same way what the target's norm and head decode from each
block's output, without patching; `depth/probability_max` is the answer's largest probability at any block of
the unlearned model, by its own norm and head (the white-box attack of arXiv 2409.18025).

States are outputs of blocks, before the final norm. The score's published code takes the last block's state
after the norm, which the target then normalises again; there the two do not agree.

This variant scores no copy of the model. A benchmark would have one model at a time; the score needs the
target and the retain model in addition to the unlearned one. Two are in memory at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from eval.benchmark import Better, Metric
from eval.collection.patching import Item, Scores, read_scores
from eval.collection.portions import read_portion, save_portion
from eval.collection.ragged import Ragged
from eval.metrics.depth import depth_score, encoding, erased_share, over_encoding
from eval.metrics.likelihood import aggregate, mean
from eval.variants._answer_spans import read_spans
from eval.variants._base import Workbench
from unlearn.config import RunConfig, Section
from unlearn.data.readers import content_hash
from unlearn.data.sources import available, retain_model
from unlearn.errors import UserError
from unlearn.files import digest, replacing, write_json
from unlearn.models import load as models
from unlearn.paths import file_problem, is_local, repository_problem, user_path

log = logging.getLogger(__name__)

SETS = ("forget",)
KEYS = r"(?!)"
"""No benchmark's key: this variant scores no copy of the model."""
ATTACK = False
KEY = "eval.variants.depth"
METRICS = {
    "depth/uds": Metric(
        "unlearning depth score: erased share of what the target's blocks encode, by activation patching",
        Better.FORGOTTEN_IF_HIGHER, level=2,
    ),
    "depth/logit_lens": Metric(
        "the same by what the target's norm and head decode from each block", Better.FORGOTTEN_IF_HIGHER,
        level=2,
    ),
    "depth/probability": Metric("probability of the answer, at the last block", Better.FORGOTTEN_IF_LOWER),
    "depth/probability_max": Metric(
        "the largest that the model's own norm and head decode from any block", Better.FORGOTTEN_IF_LOWER,
        level=2,
    ),
}  # fmt: skip


class Options(Section):
    """Options of the variant.

    - `threshold`: a block encodes an answer if the retain model's state costs more, in nats per token.
    - `spans`: a file of the parts of answers that are measured, a JSON list of objects with `question`,
      `answer`, `entity` and perhaps the `prefix` before it; examples without an entry are left out. null: the
      whole answer without its end token.
    - `target`: hub id or folder of the target, for a model that this run did not unlearn (method=none).
    """

    threshold: float = 0.05
    spans: str | None = None
    target: str | None = None


def check(options: Options, config: RunConfig) -> list[str]:
    problems = []
    if options.threshold < 0:
        problems.append(f"threshold={options.threshold}: a drop in nats counts from 0 on; 0.05 is published")
    if options.spans is not None:
        problems += _file_problem(options.spans)
    if options.target is not None and (problem := repository_problem(options.target)):
        problems.append(f"target={options.target}: {problem}")
    if options.target is not None and config.method.makes_model:
        problems.append(
            f"target={options.target}: method {config.method.name} starts from a target, which is the one to "
            "compare with: leave target out"
        )
    if "forget" not in available(config.dataset):
        problems.append(f"spans: dataset {config.dataset.name} has no forget set; set dataset.forget")
    return problems + _retain_problem(config)


def _retain_problem(config: RunConfig) -> list[str]:
    """Say why the run has no retain model to take states of, if so."""
    model, known = config.model, config.model.published.get(config.dataset.name)
    if model.retain_log is not None:
        return [f"threshold: needs a retain model's states; model.retain_log={model.retain_log} has none"]
    if not config.eval.compare:
        return ["threshold: needs the retain model, which eval.compare=false leaves out"]
    if model.retain is None and not known and (model.is_target or retain_model(config.dataset) is None):
        return ["threshold: needs a retain model, which cannot be built here: set model.retain"]
    return []


def _file_problem(path: str) -> list[str]:
    if problem := file_problem(path):
        return [f"spans={path}: {problem}"]
    try:
        read_spans(path, f"{KEY}.spans")
    except UserError as error:
        return [str(error).removeprefix(f"{KEY}.")]
    return []


def warnings(options: Options, config: RunConfig) -> list[str]:
    """Say that a model without a target to compare with has no depth."""
    if options.target is not None or (config.method.makes_model and config.method.start == "target"):
        return []
    return [
        f"measures nothing here, since method={config.method.name} unlearns no target; set {KEY}.target to "
        "the target of model.path, or choose a method that unlearns"
    ]


def identity(options: Options) -> Any:
    spans = None if options.spans is None else content_hash(user_path(options.spans))
    return options.model_dump() | {"spans": spans}


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return the keys of `METRICS`; empty where there is no target or no retain model to compare with.

    `eval/depth` gets `layers.json`, the means by block, and `examples.parquet`.

    Raises:
        UserError: the models do not fit together, or no example can be measured.
    """
    known = bench.weights.get("retain")
    if (not bench.has_target and options.target is None) or known is None:
        log.info("depth: there is no target or no retain model to compare this model with")
        return {}
    items = items_of(bench, options)
    held = bench.held("target") if bench.has_target else bench.held_from(options.target)
    with held as (target, collective):
        bench = replace(bench, world=bench.world.with_collective_forward(collective))
        own, retain = _stage_one(bench, options, items, target)
        with bench.held() as (model, _):
            unlearned = _scores(bench, items, target, model)
            del model
        del target
    values = _compared(own, retain, unlearned, options.threshold)
    metrics: dict[str, float] = {}
    for name in METRICS:
        metrics |= aggregate(name, values[name.removeprefix("depth/")])
    rows = by_block(own, retain, unlearned, options.threshold)
    bench.world.on_main(partial(_write, bench.directory / "eval" / "depth", items, values, rows))
    return metrics


def _compared(own: Scores, retain: Scores, unlearned: Scores, threshold: float) -> dict[str, np.ndarray]:
    """Return the metrics of each example, [E]."""
    drops = (own.patched - retain.patched, own.patched - unlearned.patched)
    lens = (own.lens - retain.lens, own.lens - unlearned.lens)
    probabilities = np.exp(unlearned.own)
    return {
        "uds": depth_score(*drops, threshold),
        "logit_lens": depth_score(*lens, threshold),
        "probability": probabilities[:, -1],
        "probability_max": probabilities.max(1),
    }


def by_block(
    own: Scores, retain: Scores, unlearned: Scores, threshold: float
) -> list[dict[str, float | None]]:
    """Return a row of means for each block, counted from 1; None for what no example has.

    `retain_drop` and `drop` in nats; `encoding`: the share of examples that the block encodes, and `erased`
    the erased share over these. `…probability`: decoded from the block's output by the model's own norm and
    head.
    """
    first, second = own.patched - retain.patched, own.patched - unlearned.patched
    encoded = encoding(first, threshold)
    columns = {
        "retain_drop": _means(first),
        "drop": _means(second),
        "encoding": encoded.mean(0),
        "erased": over_encoding(erased_share(first, second), encoded),
        "target_probability": _means(np.exp(own.own)),
        "retain_probability": _means(np.exp(retain.own)),
        "probability": _means(np.exp(unlearned.own)),
    }
    return [
        {"block": block + 1} | {name: _number(values[block]) for name, values in columns.items()}
        for block in range(first.shape[1])
    ]


def _means(values: np.ndarray) -> np.ndarray:
    return np.array([mean(column) for column in values.T])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _write(
    folder: Path, items: Sequence[Item], values: dict[str, np.ndarray], rows: list[dict[str, Any]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_json(folder / "layers.json", {"blocks": rows})
    table = {"set": ["forget"] * len(items), "id": [item.example.id for item in items]}
    with replacing(folder / "examples.parquet") as path:
        pq.write_table(pa.table(table | {k: v.tolist() for k, v in values.items()}), path, compression="zstd")


def items_of(bench: Workbench, options: Options) -> list[Item]:
    """Return the examples of the forget set with the answer tokens that are measured.

    Raises:
        UserError: there are no examples, or no entry of the file is of one of them.
    """
    examples = bench.sets.get("forget", [])[: bench.config.eval.limit]
    if not examples:
        raise UserError(f"{KEY}: the dataset has no forget set; set dataset.forget")
    if options.spans is None:
        spans = {example.id: (0, len(example.answer)) for example in examples}
    else:
        known = read_spans(options.spans, f"{KEY}.spans")
        texts = {example.id: (example.question or "", example.answer) for example in examples}
        spans = {name: known[text] for name, text in texts.items() if text in known}
    chosen = [example for example in examples if example.id in spans]
    pairs = [(example.question, example.answer) for example in chosen]
    openings = [example.opening for example in chosen]
    marked = bench.encoder.important(pairs, [[spans[example.id]] for example in chosen], openings)
    items = [
        Item(example, sequence, flags)
        for example, sequence, flags in zip(chosen, bench.encoder.answers(chosen), marked, strict=True)
        if flags.any()
    ]
    if not items:
        raise UserError(
            f"{KEY}.spans={options.spans or 'null'}: no entry is of one of the {len(examples)} examples of "
            "the forget set, with the same question and answer, within dataset.max_length"
        )
    if len(items) < len(examples):
        log.info("depth: %d of %d examples are measured", len(items), len(examples))
    return items


def _stage_one(
    bench: Workbench, options: Options, items: Sequence[Item], target: nn.Module
) -> tuple[Scores, Scores]:
    """Return the scores of the target and of the retain model, from the cache if they are known."""
    file = _cache_file(bench, options, items)
    names = [f"{model}/{what}" for model in ("target", "retain") for what in Scores.__dataclass_fields__]

    def cached() -> dict[str, np.ndarray] | None:
        columns = read_portion(file, names)
        if columns is None:
            return None
        return {name: rows.values.reshape(len(items), -1) for name, rows in columns.items()}

    known = bench.world.on_main(cached)
    if known is None:
        own = _scores(bench, items, target, target)
        with bench.held_from(bench.weights["retain"].source) as (model, _):
            retain = _scores(bench, items, target, model)
            del model  # free it before the next
        pairs = zip(names, [*vars(own).values(), *vars(retain).values()], strict=True)
        known = dict(pairs)
        columns = {name: Ragged.of(list(values)) for name, values in known.items()}
        bench.world.on_main(partial(_save, file, columns))
    values = [known[name] for name in names]
    return Scores(*values[:3]), Scores(*values[3:])


def _save(file: Path, columns: dict[str, Ragged]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_portion(file, columns)


def _cache_file(bench: Workbench, options: Options, items: Sequence[Item]) -> Path:
    """Return the file of the first stage, which all runs with these models, this data and `root` share."""
    weights = bench.weights.get("target")
    target = _identity(bench, options.target) if weights is None else weights.key
    tokens = [
        [item.sequence.ids.tolist(), item.sequence.answer_start, item.measured.tolist()] for item in items
    ]
    retain = bench.weights["retain"].key
    name = digest(
        {"target": target, "retain": retain, "dtype": bench.config.hardware.dtype, "tokens": tokens}
    )
    return user_path(bench.config.root) / "cache" / "depth" / f"{name}.npz"


def _identity(bench: Workbench, source: str | None) -> Any:
    path = str(user_path(source)) if source is not None and is_local(source) else source
    return models.identity(bench.config.model, path)


def _scores(bench: Workbench, items: Sequence[Item], target: nn.Module, source: nn.Module) -> Scores:
    return read_scores(
        items, target, source, bench.world, max_tokens=bench.config.hardware.eval_tokens
    )  # fmt: skip
