"""Train the model on a part of the forget set, to see how fast what was forgotten comes back.

Knowledge that was only hidden returns within a few steps, also where the model is not trained on it; what is
gone is learned like anything new. So there are two curves: of the whole forget set, and of the examples left
out of this training (`unseen`), which measures hidden knowledge. The retain model's evaluation gives the
curve of a model that has nothing to remember. Unrelated text says nothing of the forget set; what returns in
training on it was suppressed only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from eval.judgement.aspects import UNSEEN
from eval.selection import text_id
from eval.variants._base import Workbench, prefixed
from unlearn.config import LoraConfig, MethodConfig, RunConfig, Section, Seed
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
UNRELATED = "unrelated"
KEYS = rf"relearning/(?:(?:\d+_examples|{UNRELATED})/)?[^/]+(?:{UNSEEN})?"
"""Prefix of a benchmark's keys."""
ATTACK = True


class Options(Section):
    """Options of the variant.

    The defaults train on 40 of the 400 examples of TOFU's forget10, and score after one, two and four epochs.

    - `steps`: optimizer steps after which the forget sets are scored.
    - `share`: of the forget set, drawn by `seed`, the same for every model.
    - `examples`: instead of a share, numbers of examples to draw, a curve for each. Of several the smaller
      sets are parts of the larger.
    - `text`: instead of a share, a file of other, related data (json, jsonl or parquet as for
      dataset.source=custom, or txt: one plain text).
    - `unrelated`: a further curve, of training on such a file of unrelated data.
    - `batch`: examples of a step.
    - `seed`: of the draw and of the order of the data.
    - `adapters`: rank of new adapters that are trained instead of all weights, where these do not fit; the
      same for every model, whatever it was unlearned with.
    - `lr`: constant, times `model.lr_scale`; by default that of TOFU's target (arXiv 2401.06121, §3), which
      sufficed to learn it.
    """

    steps: tuple[int, ...] = (5, 10, 20)
    share: float = 0.1
    examples: tuple[int, ...] = ()
    text: str | None = None
    unrelated: str | None = None
    adapters: NonNegativeInt = 0
    lr: float = 1e-5
    batch: int = 8
    seed: Seed = 0


def check(options: Options, config: RunConfig) -> list[str]:
    problems = []
    if not options.steps or min(options.steps) < 1:
        problems.append(f"steps={list(options.steps)}: give one or more numbers of steps, from 1 on")
    if not 0 < options.share <= 1:
        problems.append(f"share={options.share}: give a share of the forget set, above 0 and up to 1")
    if options.examples and min(options.examples) < 1:
        problems.append(f"examples={list(options.examples)}: give numbers of examples, from 1 on")
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
    if options.unrelated is not None:
        problems += _text_problem("unrelated", options.unrelated)
    if options.text is not None:
        problems += _text_problem("text", options.text)
    elif "forget" not in available(config.dataset):
        problems.append(
            f"share: dataset {config.dataset.name} has no forget set to train on; set dataset.forget, or "
            "eval.variants.relearning.text"
        )
    return problems


def warnings(options: Options, config: RunConfig) -> list[str]:
    if not config.model.lora.r or options.adapters:
        return []
    return [
        "trains all weights, of a model that adapters were trained of; where that does not fit: adapters=8"
    ]


def identity(options: Options) -> Any:
    files = {"text": options.text, "unrelated": options.unrelated}
    hashes = {key: None if path is None else content_hash(user_path(path)) for key, path in files.items()}
    # Without adapters as in releases that had none.
    return options.model_dump(exclude=set() if options.adapters else {"adapters"}) | hashes


def settings(config: RunConfig) -> Any:
    # The adapters are those of earlier releases, whose runs without adapters stay complete.
    return {"lora": LoraConfig().model_dump(mode="json"), "lr_scale": config.model.lr_scale}


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `relearning/<steps>/…` of the forget sets, and `relearning/<steps>/unseen/…` of other examples.

    With `examples` it is `relearning/<number>_examples/<steps>/…`, and for unrelated text
    `relearning/unrelated/<steps>/…`. The other examples are those it was not trained on. Also returns
    `relearning/steps` and `relearning/examples`, the number of examples trained on, for each curve.

    Raises:
        UserError: there is nothing to train on, or the loss is not finite.
    """
    metrics: dict[str, float] = {}
    for name, examples in curves(bench, options).items():
        metrics |= _curve(bench, options, f"relearning/{name}" if name else "relearning", examples)
    return metrics


def curves(bench: Workbench, options: Options) -> dict[str, list[Example]]:
    """Return the examples of each curve by its name, "" for that of `share` or `text`.

    Raises:
        UserError: there are fewer examples than wanted, or none.
    """
    named = {f"{count}_examples": relearned(bench, options, count) for count in sorted({*options.examples})}
    named = named or {"": relearned(bench, options)}
    if options.unrelated is not None:
        named[UNRELATED] = bench.encoder.chunks(_read("unrelated", options.unrelated))
    return named


def _curve(bench: Workbench, options: Options, name: str, examples: list[Example]) -> dict[str, float]:
    """Return the metrics of one curve, whose keys begin with `name`."""
    seen = also_seen(bench, examples)
    metrics: dict[str, float] = {}
    with _trainer(bench, options, examples, name) as trainer:
        for steps in sorted(set(options.steps)):
            trainer.total = steps  # the rate is constant, so nothing depends on the end
            try:
                trainer.run()
            except NonFiniteLoss as error:
                raise UserError(
                    f"relearning: the loss is not finite at step {trainer.steps_made + 1}; lower "
                    f"eval.variants.relearning.lr={options.lr}"
                ) from error
            label, engine = f"{name}/{steps}", trainer.engine
            score = partial(
                bench.score, engine.module, label, ["forget"], collective_forward=engine.zero == 3
            )
            metrics |= prefixed(label, score())
            if seen:
                metrics |= prefixed(f"{label}{UNSEEN}", score(exclude_ids=seen))
    return metrics | {f"{name}/steps": max(options.steps), f"{name}/examples": len(examples)}


def relearned(bench: Workbench, options: Options, count: int | None = None) -> list[Example]:
    """Return the examples to train on: `count` of the forget set or the text, or what the options say.

    Raises:
        UserError: the dataset has no forget set, or there are fewer examples than `count`.
    """
    draws = np.random.default_rng([options.seed, zlib.crc32(b"relearning")])
    if options.text is None:
        pool = bench.sets.get("forget", [])
        if not pool:
            raise UserError(
                f"relearning trains on the forget set, which dataset {bench.config.dataset.name} does not "
                "give: set dataset.forget, or eval.variants.relearning.text"
            )
        # A run that trained has a long text in chunks already, others have it whole.
        pool = bench.encoder.chunks(pool)
    else:
        pool = bench.encoder.chunks(_read("text", options.text))
        if count is None:
            return pool
    wanted = max(1, round(options.share * len(pool))) if count is None else count
    if wanted > len(pool):
        raise UserError(
            f"eval.variants.relearning.examples: {wanted} examples are wanted, and there are {len(pool)}: "
            "lower it"
        )
    return [pool[i] for i in draws.permutation(len(pool))[:wanted]]


def also_seen(bench: Workbench, examples: Sequence[Example]) -> frozenset[str]:
    """Return the ids, in sets that can be scored, of these examples and of those with the same texts.

    A text that was cut in pieces is seen as a whole if one of them is.
    """
    ids = {text_id(example) for example in examples}
    texts = {(example.question, example.answer) for example in examples}
    return frozenset(
        example.id
        for name, own in bench.sets.items()
        for example in own
        if name not in SETS
        if text_id(example) in ids or (example.question, example.answer) in texts
    )


class _NoTracker:
    """The losses go to the variant's own history, not to the run's tracker."""

    def log(self, row: Any, step: int) -> None: ...


@contextmanager
def _trainer(bench: Workbench, options: Options, examples: Sequence[Example], name: str) -> Iterator[Trainer]:
    config, world = bench.config, bench.world
    method = MethodConfig(
        name="relearning", forget={"objective": "nll"}, lr=options.lr, batch=options.batch,
        steps=max(options.steps), schedule="constant", warmup_epochs=0, weight_decay=0,
    )  # fmt: skip
    rundir = RunDir(bench.directory / "eval" / name)
    if world.main:
        rundir.path.mkdir(parents=True, exist_ok=True)
        rundir.history.unlink(missing_ok=True)
    engine = Engine(
        _trainable(bench, options), world, config.hardware, clip=clip_norm(method),
        weight_decay=method.weight_decay, betas=method.betas,
    )  # fmt: skip
    groups = {"forget": Group([e.id for e in examples], Part(bench.encoder.answers(examples)))}
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


def _trainable(bench: Workbench, options: Options) -> Any:
    """Return the finished model, with new adapters where they are asked for; edits are unchanged."""
    config = bench.config
    made: Any = bench.trainable()
    if options.adapters:
        made = adapt.add_lora(made, LoraConfig(r=options.adapters), options.seed)
    if config.hardware.activation_checkpointing:
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        made.enable_input_require_grads()
    return made


def _text_problem(key: str, path: str) -> list[str]:
    if problem := custom.rows_problem(user_path(path), path, more=(".txt",)):
        return [f"{key}={path}: {problem}"]
    try:
        _read(key, path)
    except UserError as error:
        return [str(error)]
    return []


def _read(key: str, path: str) -> list[Example]:
    """Return the examples of a file that an option names.

    Raises:
        UserError: it cannot be read, or does not hold what it should.
    """
    file, label = user_path(path), f"{key}={path}"
    if file.suffix.lower() != ".txt":
        rows = read_rows(file, label).cut(slice(None))
        return [custom.example_of(row, where, f"{file.stem}/{number}") for number, row, where in rows]
    text = read_text(file, label)
    if not text.strip():
        raise UserError(f"{label}: the file is empty")
    return [Example(id=file.stem, answer=text)]
