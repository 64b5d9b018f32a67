"""Train the model on a part of the forget set, to see how fast what was forgotten comes back.

Knowledge that was only hidden returns within a few steps, also where the model is not trained on it; what is
gone is learned like anything new. So there are two curves: of the whole forget set, and of the examples left
out of this training (`unseen`), which measures hidden knowledge. The retain model's evaluation gives the
curve of a model that has nothing to remember.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from eval.judgement.aspects import UNSEEN
from eval.variants._base import Workbench, prefixed
from unlearn.config import MethodConfig, RunConfig, Section
from unlearn.data.example import Example
from unlearn.data.readers import content_hash, read_rows
from unlearn.data.sources import available, custom
from unlearn.errors import UserError
from unlearn.models import adapt
from unlearn.paths import user_path
from unlearn.reading import read_text
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.terms import bind
from unlearn.training.engine import Engine
from unlearn.training.observers import History
from unlearn.training.step_data import Group, Part, TrainingData
from unlearn.training.trainer import NonFiniteLoss, Trainer, TrainSettings

SETS = ("forget",)
KEYS = rf"relearning/[^/]+(?:{UNSEEN})?"
"""Prefix of a benchmark's keys."""
ATTACK = True


class Options(Section):
    """Options of the variant.

    The defaults train on 40 of the 400 examples of TOFU's forget10, and score after one, two and four epochs.

    - `steps`: optimizer steps after which the forget sets are scored.
    - `share`: of the forget set, drawn by `seed`, the same for every model.
    - `text`: instead of a share, a file of other, related data (json, jsonl or parquet as for
      dataset.source=custom, or txt: one plain text).
    - `batch`: examples of a step.
    - `seed`: of the draw and of the order of the data.
    - `lr`: constant, times `model.lr_scale`; by default that of TOFU's target (arXiv 2401.06121, §3), which
      sufficed to learn it.
    """

    steps: tuple[int, ...] = (5, 10, 20)
    share: float = 0.1
    text: str | None = None
    lr: float = 1e-5
    batch: int = 8
    seed: int = 0


def check(options: Options, config: RunConfig) -> list[str]:
    problems = []
    if not options.steps or min(options.steps) < 1:
        problems.append(f"steps={list(options.steps)}: give one or more numbers of steps, from 1 on")
    if not 0 < options.share <= 1:
        problems.append(f"share={options.share}: give a share of the forget set, above 0 and up to 1")
    problems += [
        f"{key}={value}: it must be above 0"
        for key in ("lr", "batch")
        if not (value := getattr(options, key)) > 0
    ]
    if options.seed < 0:
        problems.append(f"seed={options.seed}: it must not be below 0")
    if options.batch < config.hardware.processes:
        problems.append(
            f"batch={options.batch} is smaller than hardware.processes={config.hardware.processes}: some "
            "processes would have nothing to do"
        )
    if options.text is not None:
        problems += _text_problem(options.text)
    elif "forget" not in available(config.dataset):
        problems.append(
            f"share: dataset {config.dataset.name} has no forget set to train on; set dataset.forget, or "
            "eval.variants.relearning.text"
        )
    return problems


def identity(options: Options) -> Any:
    text = None if options.text is None else content_hash(user_path(options.text))
    return options.model_dump() | {"text": text}


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `relearning/<steps>/…` of the forget sets, and `relearning/<steps>/unseen/…` of other examples.

    The other examples are those it was not trained on. Also returns `relearning/steps` and
    `relearning/examples`, the number of examples trained on.

    Raises:
        UserError: there is nothing to train on, or the loss is not finite.
    """
    examples = relearned(bench, options)
    seen = also_seen(bench, examples)
    metrics: dict[str, float] = {}
    with _trainer(bench, options, examples) as trainer:
        for steps in sorted(set(options.steps)):
            trainer.total = steps  # the rate is constant, so nothing depends on the end
            try:
                trainer.run()
            except NonFiniteLoss as error:
                raise UserError(
                    f"relearning: the loss is not finite at step {trainer.steps_made + 1}; lower "
                    f"eval.variants.relearning.lr={options.lr}"
                ) from error
            label, engine = f"relearning/{steps}", trainer.engine
            score = partial(
                bench.score, engine.module, label, ["forget"], collective_forward=engine.zero == 3
            )
            metrics |= prefixed(label, score())
            if seen:
                metrics |= prefixed(f"{label}{UNSEEN}", score(exclude_ids=seen))
    return metrics | {"relearning/steps": max(options.steps), "relearning/examples": len(examples)}


def relearned(bench: Workbench, options: Options) -> list[Example]:
    """Return the examples to train on.

    Raises:
        UserError: the dataset has no forget set.
    """
    if options.text is not None:
        return bench.encoder.chunks(_read(options.text))
    pool = bench.sets.get("forget", [])
    if not pool:
        raise UserError(
            f"relearning trains on the forget set, which dataset {bench.config.dataset.name} does not give: "
            "set dataset.forget, or eval.variants.relearning.text"
        )
    draws = np.random.default_rng([options.seed, zlib.crc32(b"relearning")])
    pool = bench.encoder.chunks(
        pool
    )  # a run that trained has a long text in chunks already, others have it whole
    chosen = draws.permutation(len(pool))[: max(1, round(options.share * len(pool)))]
    return [pool[i] for i in chosen]


def also_seen(bench: Workbench, examples: Sequence[Example]) -> frozenset[str]:
    """Return the ids, in sets that can be scored, of these examples and of those with the same texts."""
    ids = {example.id for example in examples}
    texts = {(example.question, example.answer) for example in examples}
    return frozenset(
        example.id
        for name, own in bench.sets.items()
        for example in own
        if name not in SETS
        if example.id in ids or (example.question, example.answer) in texts
    )


class _NoTracker:
    """The losses go to the variant's own history, not to the run's tracker."""

    def log(self, row: Any, step: int) -> None: ...


@contextmanager
def _trainer(bench: Workbench, options: Options, examples: Sequence[Example]) -> Iterator[Trainer]:
    config, world = bench.config, bench.world
    method = MethodConfig(
        name="relearning", forget={"objective": "nll"}, lr=options.lr, batch=options.batch,
        steps=max(options.steps), schedule="constant", warmup_epochs=0, weight_decay=0,
    )  # fmt: skip
    rundir = RunDir(bench.directory / "eval" / "relearning")
    if world.main:
        rundir.path.mkdir(parents=True, exist_ok=True)
        rundir.history.unlink(missing_ok=True)
    engine = Engine(
        _trainable(bench), world, config.hardware, clip=clip_norm(method),
        weight_decay=method.weight_decay, betas=method.betas,
    )  # fmt: skip
    pairs = [(e.question, e.answer) for e in examples]
    answers = Part(bench.encoder.pairs(pairs, [e.opening for e in examples]))
    groups = {"forget": Group([e.id for e in examples], answers)}
    try:
        # Without checkpoints: so few steps are faster to repeat than to write.
        yield Trainer(
            engine,
            bind(method),
            TrainingData(groups, seed=options.seed, pad_id=bench.encoder.pad_id),
            TrainSettings(method, config.hardware, method.rate(config.model.lr_scale), bench.progress),
            History(rundir, _NoTracker(), world.main),
        )
    finally:
        engine.close()


def _trainable(bench: Workbench) -> Any:
    """Return the finished model, with new adapters if the run trained adapters; edits are unchanged."""
    config = bench.config
    made: Any = bench.unlearned()
    if config.model.lora.r:
        made = adapt.add_lora(made, config.model.lora, config.seed)
    if config.hardware.activation_checkpointing:
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        made.enable_input_require_grads()
    return made


def _text_problem(path: str) -> list[str]:
    if problem := custom.rows_problem(user_path(path), path, more=(".txt",)):
        return [f"text={path}: {problem}"]
    try:
        _read(path)
    except UserError as error:
        return [str(error)]
    return []


def _read(path: str) -> list[Example]:
    """Return the examples of a file.

    Raises:
        UserError: it cannot be read, or does not hold what it should.
    """
    file, label = user_path(path), f"text={path}"
    if file.suffix.lower() != ".txt":
        rows = read_rows(file, label).cut(slice(None))
        return [custom.example_of(row, where, f"{file.stem}/{number}") for number, row, where in rows]
    text = read_text(file, label)
    if not text.strip():
        raise UserError(f"{label}: the file is empty")
    return [Example(id=file.stem, answer=text)]
