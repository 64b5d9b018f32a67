"""The way of one run in one process: prepare, train, evaluate, write down.

Every process of a run calls `execute` with the same arguments.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval import variants
from eval.benchmark import find
from eval.evaluate import plan
from eval.judgement.judge import judge
from eval.suite import Scoring
from eval.variants.base import ROLES, Workbench
from unlearn import interventions
from unlearn.config import RunConfig
from unlearn.data.batching import Batch, collate, deal
from unlearn.data.example import Example
from unlearn.data.sources import available, load_sets
from unlearn.distributed import World, start_world, stop_world
from unlearn.errors import ConfigError, UserError
from unlearn.files import read_json, write_json
from unlearn.models import load as models
from unlearn.models.adapter_targets import unties
from unlearn.models.skeleton import limits
from unlearn.models.verify import Trial, trial, verify
from unlearn.probes.saved import saved_models
from unlearn.probes.saved_models import look_at_saved, make_probe
from unlearn.probes.set_gradients import SETS
from unlearn.rules import clip_norm, make_rule
from unlearn.run_dir import RunDir
from unlearn.signals import on_stop
from unlearn.terms import bind, training_sets
from unlearn.training import gradient_reach as reach
from unlearn.training.engine import Engine, deepspeed_config, precision
from unlearn.training.microbatch import Frozen
from unlearn.training.prepare import FrozenModel, Preparation
from unlearn.training.trainer import Logger, Stopped, Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Weights of a model: a hub id or folder (None: the model's own path), and what identifies them."""

    source: str | None
    key: str


@dataclass(frozen=True)
class Beside:
    """What a run is compared with: the directories of the runs that evaluate the retain model and the target,
    and a published `log` in place of the former."""

    retain: Path | None = None
    target: Path | None = None
    log: Path | None = None


@dataclass(frozen=True)
class Job:
    """A run that is ready to execute: what it starts from, and what it is compared with.

    `reinforced` is the target trained further on the forget set, for methods that need it.
    """

    config: RunConfig
    fingerprint: str
    start: Weights
    beside: Beside = Beside()
    reinforced: Weights | None = None


def execute(job: Job, rundir: RunDir, tracker: Logger, *, progress: bool = True) -> dict[str, float]:
    """Train if the model is not there yet, evaluate, and return the summary numbers.

    Raises:
        UserError: the data, the model or the loss make the run impossible; the message says what to do.
        Stopped: a signal asked for it; the run continues when started again, in training from a checkpoint.
    """
    started = time.monotonic()
    _prepare_process(job.config)
    world = start_world(job.config.hardware.device)
    # Of several processes one may have left the others in a collective: there the signal ends them all.
    stopping = on_stop(_stop) if world.size == 1 else nullcontext()
    try:
        with stopping:
            if world.main:
                rundir.clear_leftovers()
            return _Run(job, rundir, tracker, world, progress, started).execute()
    finally:
        gc.collect()
        stop_world()


def evaluation_sets(config: RunConfig) -> set[str]:
    """The sets that the benchmarks score and the variants read, where the dataset has them."""
    scored = {name for benchmark in config.eval.benchmarks for name in find(benchmark).SETS}
    return scored | variants.sets(config.eval.variants)


def watched_sets(config: RunConfig) -> set[str]:
    """The sets that a probe looks at, where the dataset has them."""
    if not config.probe.on:
        return set()
    method = config.probe.method
    own = set() if method is None else training_sets(config.model_copy(update={"method": method}))
    return own | (set(SETS) & set(available(config.dataset)))


def benchmark_options(config: RunConfig, name: str) -> dict[str, Any]:
    """The options a benchmark is given: its own, and what the configuration says to all of them."""
    limit = config.eval.max_new_tokens
    knows = any(field.name == "max_new_tokens" for field in fields(find(name).Options))
    common = {"max_new_tokens": limit} if limit is not None and knows else {}
    return common | dict(config.eval.benchmarks[name] or {})


class _Run:
    def __init__(
        self, job: Job, rundir: RunDir, tracker: Logger, world: World, progress: bool, started: float
    ) -> None:
        self.job, self.config, self.rundir, self.tracker, self.world = job, job.config, rundir, tracker, world
        self.progress, self.started = progress, started
        self.terms = models.placed(bind(self.config.method), self.config.model, job.start.source)
        trained = training_sets(self.config) | watched_sets(self.config)
        self.sets = load_sets(self.config.dataset, trained | evaluation_sets(self.config))
        for (
            name
        ) in self.config.eval.benchmarks:  # what cannot be measured is refused before it is trained for
            plan(name, self._scored_sets(), benchmark_options(self.config, name))
        model, source = self.config.model, job.start.source
        self.tokenizer = models.load_tokenizer(model, source)
        self.encoder = models.make_encoder(
            model, self.tokenizer, self.config.dataset.max_length, limits(model, source)
        )
        for note in self.encoder.notes():
            log.info("%s", note)
        for name in trained & self.sets.keys():  # a long text is trained on to its end
            self.sets[name] = self.encoder.chunks(self.sets[name])

    def execute(self) -> dict[str, float]:
        made = self.config.method.makes_model
        if self.terms and not self.rundir.model.is_dir():
            engine = self._train()
            # Where what was saved is not what was trained, what was saved is measured.
            apart = unties(engine.module) and engine.zero < 3  # whole, it may not fit on one device
            if self.config.method.update_scale != 1 or apart:
                engine.close()
                del engine
                gc.collect()
                metrics = self._evaluate(self._finished_model(), "eval", synced=False)
            else:
                metrics = self._evaluate(engine.module, "eval", synced=engine.zero == 3)
                engine.close()
                del engine  # the variants load models of their own
                gc.collect()
        else:
            if made and not self.rundir.model.is_dir():
                self._fit()
            if self.config.probe.on and not made:
                self._look_at_saved()
            metrics = self._evaluate(self._finished_model(), "eval", synced=False)
        metrics |= self._variants(metrics)
        metrics |= self._judged(metrics)
        summary = {**self._training_summary(), **metrics, "run/seconds": time.monotonic() - self.started}
        if self.world.main:
            write_json(self.rundir.results, summary)
            # From here on the run is complete: killed before, it still has what it needs.
            if made and not self.config.save_model:
                shutil.rmtree(self.rundir.model, ignore_errors=True)
            self.rundir.drop_checkpoints()
        self.world.barrier()
        return summary

    # -- training --------------------------------------------------------------------------------------

    def _train(self) -> Engine:
        config = self.config
        found = self.rundir.load_checkpoint()
        holder = _Holder(self._fresh_model, self._engine)
        ready = Preparation(config, self.terms, self.sets, self.encoder, self.world)
        sources = {"reference": FrozenModel(self.job.start.key, holder.hold, holder.whole_head)}
        if self.job.reinforced is not None:
            sources["reinforced"] = FrozenModel(self.job.reinforced.key, self._reinforced, _as_it_is)
        groups, heads = ready.with_kept(ready.groups(sources["reference"]), sources)
        engine = holder.take({} if found is None else found[1])
        probe = None
        if config.probe.on:
            watched = ready.watched(groups, SETS)
            probe = make_probe(config, engine, self.terms, watched, self.sets, self.encoder, self.rundir)
            if found is None:
                probe.start.keep()
        trainer = Trainer(
            engine, self.terms, make_rule(**config.method.rule.model_dump()), groups, config.method,
            config.hardware, config.checkpoint, config.seed, config.method.rate(config.model.lr_scale),
            self.rundir, self.tracker, Frozen(heads), self.encoder.pad_id, partial(self._evaluate_at, engine),
            config.eval.every_steps, self.progress, probe,
            partial(self._keep_model, engine), started=self.started,
        )  # fmt: skip
        if found is not None:
            log.info("continuing after step %d", found[0]["step"])
            trainer.restore(*found)
        elif self.world.main:
            self.rundir.cut_history(0)
        trainer.run()
        self._save_model(engine, self.rundir.model)
        return engine

    def _look_at_saved(self) -> None:
        """The probe of a run that trains nothing: over models that were saved."""
        assert self.config.probe.method is not None
        config = self.config.model_copy(update={"method": self.config.probe.method})
        terms = models.placed(bind(config.method), config.model, self.job.start.source)
        ready = Preparation(config, terms, self.sets, self.encoder, self.world)

        def engine_of(folder: str | None) -> Engine:
            source = folder or self.job.start.source
            return self._engine(models.load_model(config.model, source, seed=config.seed))

        holder = _Holder(partial(models.load_model, config.model, self.job.start.source, seed=config.seed),
                         self._engine)  # fmt: skip
        sources = {"reference": FrozenModel(self.job.start.key, holder.hold, holder.whole_head)}
        groups, heads = ready.with_kept(ready.groups(sources["reference"]), sources)
        holder.close()
        watched = ready.watched(groups, SETS)
        look_at_saved(
            config, saved_models(config.probe.models), engine_of,
            lambda engine: make_probe(config, engine, terms, watched, self.sets, self.encoder, self.rundir),
            Frozen(heads), self.rundir, self.tracker,
        )  # fmt: skip

    def _fit(self) -> None:
        """Make the model of a method that trains nothing: the target with an edit of what it computes."""
        options = self.config.method.intervention
        assert options is not None
        if self.world.main:
            model: Any = models.load_model(self.config.model, self.job.start.source, seed=self.config.seed)
            model.to(self.world.device)
            second = None
            if self.job.reinforced is not None:
                second = models.load_model(self.config.model, self.job.reinforced.source)
            edit = self._make_intervention(model, second)
            batches = {
                name: _Batches(self.encoder, self.sets[name], self.config.hardware.eval_tokens, self.world)
                for name in interventions.sets(options)
            }
            edit.fit(model, batches.get("forget", ()), batches.get("retain", ()))
            edit.attach(model)
            beside = partial(interventions.save, model)
            own, _ = interventions.split(model.state_dict())
            models.save_pretrained(
                models.exportable(model, own), self.tokenizer, self.rundir.model, beside=beside
            )
            live = self._trial(model)
            del model, second, edit, own, beside
            self._verify(live, self.rundir.model)
        self.world.barrier()

    def _fresh_model(self) -> Any:
        """The model that training starts from, with adapters or edits if it has them."""
        config = self.config
        model: Any = models.load_model(config.model, self.job.start.source, seed=config.seed)
        if config.method.intervention is not None:
            self._make_intervention(model, None).attach(model)
        if config.model.lora.r:
            model = models.add_lora(model, config.model.lora, config.seed)
        if config.method.train is not None:
            models.train_only(model, config.method.train)
        if reach.chosen(config.method, config.model.lora):
            found = reach.problems(model, config.method, config.model.lora, self.terms)
            if found:
                raise ConfigError(found)
        if config.hardware.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def _make_intervention(self, model: Any, reinforced: Any) -> interventions.Intervention:
        shape = model.config.get_text_config(decoder=True)
        assert self.config.method.intervention is not None
        return interventions.make(
            self.config.method.intervention, hidden_size=shape.hidden_size, layers=shape.num_hidden_layers,
            seed=self.config.seed, reinforced=reinforced,
        )  # fmt: skip

    @contextmanager
    def _reinforced(self) -> Iterator[tuple[nn.Module, bool]]:
        assert self.job.reinforced is not None
        model: Any = models.load_model(self.config.model, self.job.reinforced.source)
        yield models.in_precision(model, self.world.device, precision(self.config.hardware.dtype)), False

    def _training_summary(self) -> dict[str, float]:
        """The last step's losses, and totals: from the file, since an earlier process may have trained."""
        rows = [row for row in self.rundir.read_history() if "loss" in row] if self.terms else []
        if not rows:
            return {}
        last = rows[-1]
        return {
            **{f"train/{key}": value for key, value in last.items() if key.startswith("loss")},
            "train/steps": last["step"],
            "train/tokens": last["tokens"],
            "train/memory_gib": max(row["memory_gib"] for row in rows),
        }

    def _engine(self, model: nn.Module) -> Engine:
        method = self.config.method
        settings = deepspeed_config(self.config.hardware, clip=clip_norm(method))
        return Engine(model, self.world, settings, weight_decay=method.weight_decay, betas=method.betas)

    def _keep_model(self, engine: Engine, step: int) -> None:
        self._save_model(engine, self.rundir.models / f"step-{step}")

    def _save_model(self, engine: Engine, folder: Path) -> None:
        """Save the whole model, and load it again: on the main process, the rest wait.

        Raises:
            SavedModelDiffers: it does not compute what the live one does; on every process.
        """
        scale = self.config.method.update_scale
        live = None
        if scale == 1 and (self.world.main or engine.zero == 3):  # otherwise the live model is another
            live = self._trial(engine.module)
        weights = engine.weights()
        if self.world.main:
            if scale != 1:
                start = models.load_model(self.config.model, self.job.start.source, seed=self.config.seed)
                weights = models.extrapolated(start.state_dict(), weights, scale)
            own, _ = interventions.split(weights)
            plain = models.exportable(engine.module, own)
            beside = partial(interventions.save, engine.module, weights=weights)
            models.save_pretrained(plain, self.tokenizer, folder, beside=beside)
            del plain, own, beside
        del weights

        def verified() -> None:
            if live is not None:
                self._verify(live, folder)

        self.world.on_main(verified)
        self.world.barrier()

    def _trial(self, model: nn.Module) -> Trial:
        trained = training_sets(self.config)
        sets = {name: rows for name, rows in self.sets.items() if name in trained} or self.sets
        return trial(model, self.encoder, sets, self.world.device)

    def _verify(self, live: Trial, folder: Path) -> None:
        try:
            verify(live, folder, self.config.model, self.encoder, self.world.device)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    # -- evaluation ------------------------------------------------------------------------------------

    def _finished_model(self) -> nn.Module:
        made = self.config.method.makes_model
        return self._loaded(str(self.rundir.model) if made else self.job.start.source)

    def _loaded(self, source: str | None) -> nn.Module:
        """A whole model in compute precision, on the device."""
        model: Any = models.load_model(self.config.model, source, seed=self.config.seed)
        moved: nn.Module = models.in_precision(
            model, self.world.device, precision(self.config.hardware.dtype)
        )
        return moved

    def _evaluate_at(self, engine: Engine, step: int) -> Mapping[str, float]:
        return self._evaluate(engine.module, f"eval/step-{step}", synced=engine.zero == 3)

    def _evaluate(self, model: nn.Module, folder: str, *, synced: bool) -> dict[str, float]:
        return self._scoring(folder)(model, "", ROLES, synced=synced)

    def _scoring(self, folder: str) -> Scoring:
        config, beside = self.config, self.job.beside
        return Scoring(
            benchmarks={name: benchmark_options(config, name) for name in config.eval.benchmarks},
            sets=self._scored_sets(),
            encoder=self.encoder,
            directory=self.rundir.path / folder,
            world=self.world,
            hardware=config.hardware,
            retain_directory=None if beside.retain is None else beside.retain / "eval",
            retain_log=beside.log,
            progress=self.progress,
        )

    def _variants(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What becomes of the finished model; nothing without `eval.variants`."""
        chosen = self.config.eval.variants
        if not chosen:
            return {}
        start = self.config.method.start == "target" and self.config.method.makes_model
        bench = Workbench(
            config=self.config,
            sets=self.sets,
            encoder=self.encoder,
            world=self.world,
            unlearned=self._finished_model,
            target=(lambda: self._loaded(self.job.start.source)) if start else None,
            score=self._scoring("eval"),
            directory=self.rundir.path,
            results=metrics,
            target_results=_results_of(self.job.beside.target),
            progress=self.progress,
        )
        found: dict[str, float] = {}
        for name, options in chosen.items():
            told = self.rundir.eval / name / "problems.json"
            try:
                found |= variants.measure(name, bench, options)
                problems = []
            except UserError as error:  # of this model: the rest of what was measured stands
                log.warning("%s: %s", name, error)
                problems = [str(error)]
            if self.world.main and (problems or told.is_file()):
                write_json(told, {"problems": problems})
        return found

    def _judged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        beside = self.job.beside
        target = _results_of(beside.target) if self.config.method.makes_model else metrics
        return judge(metrics, target, _results_of(beside.retain)).metrics

    def _scored_sets(self) -> dict[str, list[Example]]:
        wanted = evaluation_sets(self.config)
        return {n: rows[: self.config.eval.limit] for n, rows in self.sets.items() if n in wanted}


def _results_of(directory: Path | None) -> dict[str, float]:
    """The flat results of another run, NaN for null; nothing where there is none."""
    if directory is None or not (directory / "results.json").is_file():
        return {}
    found = read_json(directory / "results.json")
    return {key: math.nan if value is None else value for key, value in found.items()}


class _Holder:
    """The model that will be trained, which is the reference as long as nothing was trained."""

    def __init__(self, model: Callable[[], Any], engine: Callable[[Any], Engine]) -> None:
        self._model, self._make = model, engine
        self._engine: Engine | None = None

    @contextmanager
    def hold(self) -> Iterator[tuple[nn.Module, bool]]:
        if self._engine is None:
            self._engine = self._make(self._model())
        yield self._engine.module, self._engine.zero == 3

    def whole_head(self, model: Any) -> AbstractContextManager[None]:
        assert self._engine is not None
        return self._engine.whole_parameters(model.get_output_embeddings())

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def take(self, tensors: Mapping[str, Tensor]) -> Engine:
        """The engine to train with, its model loaded with a checkpoint's tensors where there are any."""
        weights = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        if weights:  # an engine may have cut the model in parts
            self.close()
        if self._engine is None:
            model = self._model()
            model.load_state_dict(weights, strict=False)
            self._engine = self._make(model)
        return self._engine


class _Batches:
    """Batches of a set's examples, as often as they are asked for."""

    def __init__(self, encoder: Any, examples: list[Example], max_tokens: int, world: World) -> None:
        self._sequences = encoder.pairs([(e.question, e.answer) for e in examples])
        self._max_tokens, self._world = max_tokens, world

    def __iter__(self) -> Iterator[Batch]:
        (mine,) = deal([len(s.ids) for s in self._sequences], 1, max_tokens=self._max_tokens)
        for rows in mine:
            yield collate([self._sequences[i] for i in rows]).to(self._world.device)


@contextmanager
def _as_it_is(_: nn.Module) -> Iterator[None]:
    yield


def _stop(number: int) -> None:
    name = signal.Signals(number).name
    raise Stopped(f"stopped by {name}; what is done is on disk: started again, the run goes on from there")


def _prepare_process(config: RunConfig) -> None:
    torch.manual_seed(config.seed)
    hardware = config.hardware
    if hardware.device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = hardware.threads or max(1, cores * hardware.nodes // hardware.processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate sets it, with a warning
