"""Execute one run in one process: prepare, train, evaluate, write the results.

Every process of a run calls `execute` with the same arguments.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from eval import variants
from eval.benchmark import WHOLE, find, reads
from eval.configuration import benchmark_options, evaluation_sets, questions_key, requests_of
from eval.judgement.judge import judge
from eval.selection import FOLDER, Criterion, chosen_metrics, divide
from eval.suite import Scoring
from eval.variants._base import ROLES, HeldModel, Workbench
from launch.job import Job
from launch.memory.automatic import agreed, limit_to_share
from launch.report.model_card import write_cards
from launch.run.complete import refuse_other_baselines
from launch.run.config_file import read_job
from launch.run.selection import selector
from unlearn.config import HardwareConfig, RunConfig
from unlearn.data.example import Example
from unlearn.data.sources import before, load_sets
from unlearn.distributed import World, start_world, stop_world
from unlearn.errors import UserError
from unlearn.files import NoRoom, write_json
from unlearn.garbage import free_memory, resume_collection
from unlearn.models.adapter_targets import unties
from unlearn.models.skeleton import limits
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.models.weights import WeightsSource
from unlearn.passes.memory_limits import MemoryLimits
from unlearn.passes.out_of_memory import DoesNotFit, no_room
from unlearn.pipeline import Pipeline
from unlearn.probes import watched_sets
from unlearn.processor import allowed_cores
from unlearn.run_dir import RunDir
from unlearn.signals import Stopped, on_stop
from unlearn.terms import training_sets
from unlearn.training.engine import Engine, close_all
from unlearn.training.engine_slices import whole_parameters
from unlearn.training.observers import Logger

log = logging.getLogger(__name__)


def execute(job: Job, rundir: RunDir, tracker: Logger, *, progress: bool = True) -> dict[str, float]:
    """Train unless the model is already saved, evaluate, and return the results.

    Raises:
        UserError: the data, the model or the loss make the run impossible; the message says what to do.
        Stopped: a signal stopped the run; started again, it continues, in training from a checkpoint.
    """
    started = time.monotonic()
    _prepare_process(job.config)
    world = start_world(job.config.hardware.device)
    # Of several processes one could stop while the others wait in a collective: there the signal ends all.
    stopping = on_stop(_stop) if world.size == 1 else nullcontext()
    ended = False
    try:
        with stopping:
            limit_to_share(job.config.hardware)
            world = replace(world, limits=_known_limits(job.config.hardware, rundir, world))
            if world.main:
                rundir.clear_leftovers()
            results = _Run(job, rundir, tracker, world, progress, started).execute()
            ended = True
            return results
    except (DoesNotFit, RuntimeError, MemoryError) as error:
        if (what := no_room(error)) is None:
            raise
        raise UserError(what) from error
    finally:
        # Of several processes each ends with the run. Where it failed, others may be in a collective: NCCL
        # would wait for them, and they for this process, which the supervisor sees only when it has ended.
        if world.size == 1:
            close_all()
        if world.size == 1 or ended:
            free_memory()
            stop_world()


def _known_limits(hardware: HardwareConfig, rundir: RunDir, world: World) -> MemoryLimits:
    """Return the portions that fitted when the run was last started, in its directory; changes go there."""
    fitting, restarts = world.on_main(lambda: rundir.read_memory(hardware))
    return MemoryLimits(fitting, restarts, partial(rundir.write_memory, hardware))


class _Run:
    def __init__(
        self, job: Job, rundir: RunDir, tracker: Logger, world: World, progress: bool, started: float
    ) -> None:
        config, source = job.config, job.start.source
        self.job, self.config, self.rundir, self.world = job, config, rundir, world
        self.progress, self.started = progress, started
        trained = training_sets(config) | watched_sets(config)
        self.sets = load_sets(config.dataset, trained | evaluation_sets(config))
        for name in config.eval.benchmarks:  # refuse what cannot be measured before training
            for sets in self._parts() if self._divides else [self._scored_sets()]:
                requests_of(name, sets, benchmark_options(config, name))
        tokenizer = load_tokenizer(config.model, source)
        self.encoder = make_encoder(
            config.model, tokenizer, config.dataset.max_length, limits(config.model, source)
        )
        for note in self.encoder.notes():
            log.info("%s", note)
        self.config, decided = agreed(config, world, rundir)
        config = self.config
        if decided:
            log.info("%s", decided)
        for name in trained & self.sets.keys():  # training uses long texts in full
            self.sets[name] = self.encoder.chunks(self.sets[name])
        self.pipeline = Pipeline(
            config, job.start, job.reinforced, job.unlearned, rundir, tracker, world, self.sets, tokenizer,
            self.encoder, progress, started,
        )  # fmt: skip

    def execute(self) -> dict[str, float]:
        made = self.config.method.makes_model
        saved = self.world.on_main(self.rundir.model.is_dir)
        if made and not saved:
            self.world.on_main(self._drop_measured)
        if self.pipeline.terms and not saved:
            engine, live = self.pipeline.train(self._evaluate_at, self._selector())
            # If the saved model differs from the trained one, evaluate the saved model. Merged adapters are
            # rounded with the weights.
            rounded = self.config.model.lora.r > 0 and self.config.hardware.dtype != "fp32"
            if self.config.method.update_scale != 1 or unties(engine.module) or rounded or not live:
                engine.close()
                del engine
                free_memory()
                metrics = self._evaluate_saved()
            else:
                metrics = self._evaluate(engine.module, collective_forward=engine.zero == 3)
                engine.close()
                del engine  # the variants load models of their own
                free_memory()
        else:
            if made and not saved:
                self.pipeline.fit()
            if self.config.probe.on and not made:
                self.pipeline.probe_saved_models()
            metrics = self._evaluate_saved()
        metrics |= self._variants(metrics)
        metrics |= self._judged(metrics)
        summary = {
            **self._training_summary(),
            **self._chosen(),
            **metrics,
            "run/seconds": time.monotonic() - self.started,
        }
        if self.world.main:
            write_cards(self.rundir, summary)
            self.rundir.write_results(summary)
            # From here on the run is complete: model and checkpoints are needed no longer.
            if made and not self.config.save_model:
                self.rundir.drop_model()
            self.rundir.drop_checkpoints()
        self.world.barrier()
        return summary

    def _training_summary(self) -> dict[str, float]:
        """Return the last losses and the totals, from the history: another process may have trained."""
        rows = [row for row in self.rundir.read_history() if "loss" in row] if self.pipeline.terms else []
        if not rows:
            return {}
        last = rows[-1]
        return {
            **{f"train/{key}": value for key, value in last.items() if key.startswith("loss")},
            "train/steps": last["step"],
            "train/tokens": last["tokens"],
            "train/memory_gib": max(row["memory_gib"] for row in rows),
        }

    # -- the choice of a step ----------------------------------------------------------------------------

    @property
    def _divides(self) -> bool:
        return self.config.eval.select.divides

    def _selector(self) -> Criterion | None:
        if self.config.eval.select.rule is None:
            return None
        examples = {name: len(rows) for name, rows in self._selection_sets().items()}
        return self.world.on_main(lambda: selector(self.config, self.job.baselines, examples))

    def _evaluate_selection_items(self, model: nn.Module, *, collective_forward: bool) -> None:
        """Measure a model that others are compared with on the selection items."""
        scoring = self._scoring(f"eval/{FOLDER}", selecting=True)
        metrics = scoring(model, "", ROLES, collective_forward=collective_forward)
        self.world.on_main(lambda: self.rundir.write_selection({"metrics": metrics}))

    def _chosen(self) -> dict[str, float]:
        """Return the chosen step and its metrics on what the rule saw, and those of the last step."""
        if self.config.eval.select.rule is None or not self.pipeline.terms:
            return {}
        stored = self.world.on_main(self.rundir.read_selection)
        return chosen_metrics(self.config.eval.select, stored)

    # -- evaluation ------------------------------------------------------------------------------------

    def _evaluate_at(self, engine: Engine, step: int) -> Mapping[str, float]:
        scoring = self._scoring(f"eval/step-{step}", selecting=True)
        return scoring(engine.module, "", ROLES, collective_forward=engine.zero == 3)

    def _evaluate_saved(self) -> dict[str, float]:
        """Evaluate the run's model as it was saved, or without one what the run starts from."""
        with self.pipeline.held(self.pipeline.finished) as (model, collective_forward):
            metrics = self._evaluate(model, collective_forward=collective_forward)
            if self._divides and not self.config.method.makes_model:
                self._evaluate_selection_items(model, collective_forward=collective_forward)
        return metrics

    def _evaluate(self, model: nn.Module, *, collective_forward: bool) -> dict[str, float]:
        return self._scoring("eval")(model, "", ROLES, collective_forward=collective_forward)

    def _scoring(self, folder: str, *, selecting: bool = False) -> Scoring:
        """Return what evaluates in a folder; `selecting`: on the items that a step is chosen on."""
        config, baselines = self.config, self.job.baselines
        of_retain = f"eval/{FOLDER}" if selecting and self._divides else "eval"
        return Scoring(
            benchmarks={name: benchmark_options(config, name) for name in config.eval.benchmarks},
            sets=self._selection_sets() if selecting else self._scored_sets(),
            encoder=self.encoder,
            directory=self.rundir.path / folder,
            world=self.world,
            hardware=config.hardware,
            retain_directory=None if baselines.retain is None else baselines.retain / of_retain,
            retain_log=baselines.log,
            progress=self.progress,
        )

    def _variants(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of `eval.variants`, which are changed copies of the finished model."""
        chosen = self.config.eval.variants
        if not chosen:
            return {}
        start = self.config.method.start == "target" and self.config.method.makes_model
        bench = Workbench(
            config=self.config,
            sets=self.sets,
            reported=self._scored_sets(),
            questions=self.world.on_main(lambda: questions_key(self.config, self.job.baselines.log)),
            encoder=self.encoder,
            world=self.world,
            trainable=self.pipeline.trainable,
            held=self._held,
            held_from=self.pipeline.held,
            has_target=start,
            editing=partial(whole_parameters, changed=True),
            weights=self._compared_weights(start),
            score=self._scoring("eval"),
            directory=self.rundir.path,
            results=metrics,
            target_results=_results_of(self._evaluated_start),
            progress=self.progress,
        )
        if self._divides:
            bench = replace(bench, selecting=self._selecting(bench))
        measured: dict[str, float] = {}
        for name, options in chosen.items():
            file = variants.folder_of(name, self.rundir.eval) / "problems.json"
            problems = []
            try:
                measured |= variants.measure(name, bench, options)
            except (UserError, RuntimeError, MemoryError, DoesNotFit) as error:
                # Concerns this variant only: other results stay valid.
                problems = [self._left_out(name, error)]
                log.warning("%s: %s", name, problems[0])
            if problems and self.world.size == 1:  # the error has let go of its frames, and so of its models
                close_all()
                free_memory()
            if self.world.main and (problems or file.is_file()):
                write_json(file, {"problems": problems})
        return measured

    def _left_out(self, name: str, error: BaseException) -> str:
        """Return why a variant is left out.

        Raises:
            UserError: one process of several was out of memory, or the main one's disk is full, for which the
                others may wait.
        """
        if isinstance(error, NoRoom):
            raise error
        if isinstance(error, UserError):
            return str(error)
        if (what := no_room(error)) is None:
            raise error
        if self.world.size == 1:
            return what
        raise UserError(f"eval.variants.{name}: {what}; or leave the variant out") from error

    def _held(self, which: Literal["unlearned", "target"] = "unlearned") -> HeldModel:
        return self.pipeline.held(self.pipeline.finished if which == "unlearned" else self.job.start.source)

    def _selecting(self, bench: Workbench) -> Workbench:
        """Return the bench of the selection items."""
        target = self._evaluated_start
        stored = {} if target is None else RunDir(target).read_selection().get("metrics", {})
        scoring = self._scoring("eval", selecting=True)
        return replace(bench, score=scoring, results={}, target_results=_measured(stored))

    @property
    def _evaluated_start(self) -> Path | None:
        """The evaluation of what this run starts from: not the target's, after earlier requests."""
        return None if before(self.config.dataset) else self.job.baselines.target

    def _compared_weights(self, has_target: bool) -> dict[str, WeightsSource]:
        """Return where the weights of the target and of the retain model are, of those that the run has."""
        retain = self.job.baselines.retain
        weights = {"target": self.job.start} if has_target else {}
        if retain is not None:
            weights["retain"] = read_job(RunDir(retain))[0].start
        return weights

    def _drop_measured(self) -> None:
        """Remove what was measured of a model that was not kept: the one that is made now may differ from it.

        What was measured on the way stays where a checkpoint goes on from there.
        """
        goes_on = self.rundir.newest_checkpoint() is not None
        for folder in self.rundir.eval.glob("*/"):
            if not (goes_on and folder.name.startswith("step-")):
                shutil.rmtree(folder)

    def _judged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        baselines = self.job.baselines
        self.world.on_main(lambda: refuse_other_baselines(self.config, baselines))
        target = _results_of(baselines.target) if self.config.method.makes_model else metrics
        retain = _results_of(baselines.retain)
        return judge(metrics, target, retain, self.config.eval.judgement).metrics

    def _scored_sets(self) -> dict[str, list[Example]]:
        """Return the sets that are reported."""
        return self._parts()[1]

    def _selection_sets(self) -> dict[str, list[Example]]:
        """Return the sets that are evaluated during training; a step is chosen on them."""
        return self._parts()[0]

    def _parts(self) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
        """Return the sets that a step is chosen on and those that are reported.

        What questions are made of, such as the examples before them, is whole in both.
        """
        wanted, select = evaluation_sets(self.config), self.config.eval.select
        asked = {name for benchmark in self.config.eval.benchmarks for name in find(benchmark).SETS}
        whole = {n: rows for n, rows in self.sets.items() if n in wanted - asked}
        sets = {n: rows[: self.config.eval.limit] for n, rows in self.sets.items() if n in wanted & asked}
        first, second = divide(sets, select.share) if select.divides else (sets, sets)
        read = {name for benchmark in self.config.eval.benchmarks for name in reads(find(benchmark))}
        whole |= {f"{WHOLE}{name}": self.sets[name] for name in read & sets.keys()}
        return {**first, **whole}, {**second, **whole}


def _results_of(directory: Path | None) -> dict[str, float]:
    """Return the results of another run, NaN for null; {} where there is none."""
    return _measured({} if directory is None else RunDir(directory).read_results())


def _measured(results: Mapping[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in results.items()}


def _stop(number: int) -> None:
    name = signal.Signals(number).name
    raise Stopped(f"stopped by {name}; finished work is on disk; start it again to continue")


def _prepare_process(config: RunConfig) -> None:
    resume_collection()
    torch.manual_seed(config.seed)
    threads = config.hardware.threads or _threads(config.hardware)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate sets the variable, with a warning
    # An earlier run in this process had a peak of its own.
    if config.hardware.device == "cuda" and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _threads(hardware: HardwareConfig) -> int:
    """Return this process's share of the cores: those that the run may use, or of a Slurm task its own."""
    share = allowed_cores() * hardware.nodes // hardware.processes
    own = min(allowed_cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", "0")))
    return max(1, share, own // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
