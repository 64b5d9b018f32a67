"""From a configuration to a saved model: prepare, train or fit, save. It knows nothing of evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearn import interventions, probes
from unlearn.config import RunConfig
from unlearn.data.batching import Batch, collate, deal
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.errors import ConfigError, UserError
from unlearn.files import replacing
from unlearn.garbage import free_memory
from unlearn.models import adapt, export, locate, stored
from unlearn.models import load as models
from unlearn.models.corrupt import corrupt
from unlearn.models.verify import Trial, trial, verify
from unlearn.models.weights import WeightsSource
from unlearn.passes.out_of_memory import is_out_of_memory
from unlearn.probes._measure_saved import measure_saved
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.selection import Selector
from unlearn.terms import Term, bind, training_sets
from unlearn.training import gradient_reach
from unlearn.training.deepspeed_config import keeps_remainders, shards_models
from unlearn.training.engine import Engine, precision
from unlearn.training.engine_sharded import sharded
from unlearn.training.engine_slices import whole_parameters
from unlearn.training.interruption import Checkpoints
from unlearn.training.observers import History, Logger, Observers
from unlearn.training.prepare import FrozenModel, Preparation, resolve_refusals
from unlearn.training.step_data import Group, TrainingData
from unlearn.training.step_selection import StepSelection
from unlearn.training.trainer import Trainer, TrainSettings

log = logging.getLogger(__name__)


@dataclass
class Pipeline:
    """The making of one run's model, on one of its processes.

    `sets` are those that are trained on or watched, long texts cut in pieces, and others; `start` is what
    training starts from, `reinforced` the target trained further on the forget set. An `unlearned` model is
    the reference, and with noise what training starts from instead of `start`. `started` is when the run
    began, by `time.monotonic`.
    """

    config: RunConfig
    start: WeightsSource
    reinforced: WeightsSource | None
    unlearned: WeightsSource | None
    rundir: RunDir
    tracker: Logger
    world: World
    sets: dict[str, list[Example]]
    tokenizer: Any
    encoder: Encoder
    progress: bool
    started: float
    terms: list[Term] = field(init=False)

    def __post_init__(self) -> None:
        self.terms = self._resolved(self.config)

    def _resolved(self, config: RunConfig) -> list[Term]:
        terms = models.resolve_layers(bind(config.method), config.model, self.start.source)
        return resolve_refusals(terms, self.encoder)

    @property
    def finished(self) -> str | None:
        """Where the run's model is: as it was saved, or without one what the run starts from."""
        return str(self.rundir.model) if self.config.method.makes_model else self.start.source

    @contextmanager
    def held(self, source: str | None) -> Iterator[tuple[nn.Module, bool]]:
        """Yield a model in compute precision, and whether each of its calls is a collective.

        It is whole on the device; at ZeRO 3 shared out as in training, since it may fit on no device. A
        collective.
        """
        if not shards_models(self.config.hardware):
            yield self.loaded(source), False
            return
        log.info("a model without an optimizer is shared out over the processes (%d)", self.world.size)
        try:
            with sharded(self.deferred(source), self.world, self.config.hardware) as model:
                yield model, True
                del model
        finally:
            free_memory()

    def loaded(self, source: str | None) -> nn.Module:
        """Load a whole model, in compute precision, on the device. A collective.

        Raises:
            UserError: it does not fit, or cannot be read, on one of them; on every process.
        """
        whole, problem = self._moved(source)
        problems = [each for each in self.world.gather([problem] if whole is None else []) if each]
        if problems or whole is None:
            raise UserError(problems[0])
        return whole

    def _moved(self, source: str | None) -> tuple[nn.Module | None, str]:
        """Load a whole model on the device, or return why it cannot be."""
        try:
            moved: nn.Module = models.in_precision(
                self._read(source), self.world.device, precision(self.config.hardware.dtype)
            )
            return moved, ""
        except UserError as error:
            problem = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.info("%s", str(error).partition("\n")[0])
            problem = (
                "out of memory: the device of each process has no room for a whole copy of the model; "
                "hardware.dtype=bf16 takes less, and hardware.zero=3 on several processes shares the model "
                "out (docs/hardware.md)"
            )
        # The error has let go of its frames, and so of what was loaded.
        free_memory()
        return None, problem

    def trainable(self) -> nn.Module:
        """Load the run's model for an engine, which at ZeRO 3 reads its part of the parameters only."""
        shards = shards_models(self.config.hardware)
        return self.deferred(self.finished) if shards else self.loaded(self.finished)

    def _read(self, source: str | None) -> Any:
        hardware = self.config.hardware
        # Remainders hold what bf16 lacks of a file in fp32.
        dtype = torch.float32 if keeps_remainders(hardware) else precision(hardware.dtype)
        return models.read_model(self.config.model, dtype, source, seed=self.config.seed)

    def _checkpoint(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return the checkpoint to continue from, the same on all processes.

        The main process chooses it: other nodes may see a new folder later, and one that is removed longer.
        """
        newest = self.rundir.load_checkpoint() if self.world.main else None
        step = self.world.on_main(lambda: None if newest is None else newest[0]["step"])
        if self.world.main or step is None:
            return newest
        return self.rundir.wait_for_checkpoint(step)

    def train(
        self, evaluate: Callable[[Engine, int], Mapping[str, float]], selector: Selector | None = None
    ) -> tuple[Engine, bool]:
        """Train and save the model; `evaluate` measures it on the way, `selector` chooses its step.

        Returns the engine after the last step, and whether the saved model is of that step.
        """
        config = self.config
        checkpoint = self._checkpoint()
        holder = _LazyEngine(self._fresh_model, self._engine)
        ready = Preparation(config, self.terms, self.sets, self.encoder, self.world)
        sources = {"reference": FrozenModel(self.start.key, holder.hold, holder.whole_head)}
        if self.unlearned is not None:
            sources["reference"] = self._frozen(self.unlearned)
        if self.reinforced is not None:
            sources["reinforced"] = self._frozen(self.reinforced)
        groups, frozen = ready.with_frozen_outputs(ready.groups(sources["reference"]), sources)
        engine = holder.take({} if checkpoint is None else checkpoint[1])
        probe = None
        if config.probe.on:
            probe = self._probe(config, engine, self.terms, self._watched(ready, groups))
            if checkpoint is None:
                probe.begin()
        rate = config.method.rate(config.model.lr_scale)
        selection = None
        if selector is not None:
            selection = StepSelection(self.rundir, self.world, selector, partial(self._save_model, engine))
        trainer = Trainer(
            engine,
            self.terms,
            TrainingData(groups, frozen, config.seed, self.encoder.pad_id),
            TrainSettings(config.method, config.hardware, rate, self.progress),
            History(self.rundir, self.tracker, self.world.main),
            Checkpoints(self.rundir, config.checkpoint, self.started),
            Observers(
                evaluate=partial(evaluate, engine),
                evaluate_every=config.eval.every_steps,
                keep_model=partial(self._keep_model, engine),
                keep_every=config.checkpoint.models_every,
                probe=probe,
                selection=selection,
            ),
        )
        if checkpoint is not None:
            log.info("continuing after step %d", checkpoint[0]["step"])
            trainer.restore(*checkpoint)
            checkpoint = None  # its mapped files will be removed
        elif self.world.main:
            self.rundir.cut_history(0)
        trainer.run()
        free_memory()
        if selection is not None:
            if not selection.choice.met:
                log.warning("eval.select: no step meets the rule; the model is that of the last step")
            if selection.choice.step != trainer.total:
                selection.take()
                return engine, False
        self._save_model(engine, self.rundir.model, self.rundir.adapter)
        return engine, True

    def probe_saved_models(self) -> None:
        """Measure the models of `probe.models`, or the target, with the probe (`method=none`)."""
        assert self.config.probe.method is not None
        config = self.config.model_copy(update={"method": self.config.probe.method})
        terms = self._resolved(config)
        ready = Preparation(config, terms, self.sets, self.encoder, self.world)

        def model_of(source: str | None) -> Any:
            model = self.deferred(source)
            if config.method.train is not None:
                adapt.train_only(model, config.method.train)
            return model

        def engine_of(folder: str | None) -> Engine:
            return self._engine(model_of(folder or self.start.source))

        holder = _LazyEngine(partial(model_of, self.start.source), self._engine)
        sources = {"reference": FrozenModel(self.start.key, holder.hold, holder.whole_head)}
        groups, frozen = ready.with_frozen_outputs(ready.groups(sources["reference"]), sources)
        holder.close()
        watched = self._watched(ready, groups)
        measure_saved(
            config, probes.saved_models(config.probe.models), engine_of,
            lambda engine: self._probe(config, engine, terms, watched), frozen,
            self.rundir, self.tracker,
        )  # fmt: skip

    def fit(self) -> None:
        """Make the model of a method that trains nothing: the target with an edit of what it computes."""
        options = self.config.method.intervention
        assert options is not None
        if self.world.main:
            model: Any = models.load_model(self.config.model, self.start.source, seed=self.config.seed)
            model.to(self.world.device)
            second = None
            if self.reinforced is not None:
                second = models.load_model(self.config.model, self.reinforced.source)
            edit = self._make_intervention(model, second)
            batches = {
                name: _Batches(self.encoder, self.sets[name], self.config.hardware.eval_tokens, self.world)
                for name in interventions.sets(options)
            }
            edit.fit(model, batches.get("forget", ()), batches.get("retain", ()))
            edit.attach(model)
            save_edits = partial(interventions.save, model)
            own, _ = interventions.split(model.state_dict())
            live = self._trial(model)
            with replacing(self.rundir.model) as part:
                export.save_pretrained(
                    export.exportable(model, own), self.tokenizer, part, write_extra=save_edits
                )
                del model, second, edit, own, save_edits
                self._verify(live, part, self.rundir.model.name)
        self.world.barrier()

    def _fresh_model(self) -> Any:
        """The model that training starts from, with adapters or edits if it has them."""
        config = self.config
        origin = self.unlearned or self.start
        model: Any = self.deferred(origin.source, edited=config.method.intervention is not None)
        if self.unlearned is not None:
            noise = config.method.unlearned
            corrupt(model, alpha=noise.alpha, beta=noise.beta, seed=config.seed)
        if config.model.lora.r:
            model = adapt.add_lora(model, config.model.lora, config.seed)
        if config.method.train is not None:
            adapt.train_only(model, config.method.train)
        if gradient_reach.chosen(config.method, config.model.lora):
            problems = gradient_reach.problems(model, config.method, config.model.lora, self.terms)
            if problems:
                raise ConfigError(problems)
        if config.hardware.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def deferred(self, source: str | None, *, edited: bool = False) -> Any:
        """A model whose parameters are read when its engine is made; with the method's edit."""
        model = self._read(source)
        if edited:  # an edit may look at the weights
            self._make_intervention(model, None).attach(model)
        return stored.defer(model)

    def _make_intervention(self, model: Any, reinforced: Any) -> interventions.Intervention:
        shape = model.config.get_text_config(decoder=True)
        assert self.config.method.intervention is not None
        return interventions.make(
            self.config.method.intervention, hidden_size=shape.hidden_size, layers=shape.num_hidden_layers,
            seed=self.config.seed, reinforced=reinforced,
        )  # fmt: skip

    def _frozen(self, weights: WeightsSource) -> FrozenModel:
        def whole_head(model: Any) -> AbstractContextManager[None]:
            return whole_parameters(model.get_output_embeddings())

        return FrozenModel(weights.key, partial(self.held, weights.source), whole_head)

    def _watched(self, ready: Preparation, groups: Mapping[str, Group]) -> dict[str, Group]:
        return ready.watched(groups, (*probes.WATCHED, *probes.sets(self.config.probe)))

    def _probe(
        self, config: RunConfig, engine: Engine, terms: Sequence[Term], groups: Mapping[str, Group]
    ) -> probes.Probe:
        run = probes.WatchedRun(config, engine, terms, groups, self.sets, self.encoder, self.rundir.path)
        return probes.make(run)

    def _engine(self, model: nn.Module) -> Engine:
        method = self.config.method
        return Engine(
            model, self.world, self.config.hardware,
            clip=clip_norm(method), weight_decay=method.weight_decay, betas=method.betas,
        )  # fmt: skip

    def _keep_model(self, engine: Engine, step: int) -> None:
        self._save_model(engine, self.rundir.models / f"step-{step}")

    def _save_model(self, engine: Engine, folder: Path, adapter_folder: Path | None = None) -> None:
        """Save the whole model, and load it again: on the main process, the rest wait.

        The folder gets its name once it is verified, so that a process killed before leaves none. Before the
        model its adapter is saved, if it has one and a folder for it is named.

        Raises:
            SavedModelDiffers: it does not compute what the live one does; on every process.
        """
        scale = self.config.method.update_scale
        live = None
        if scale == 1 and (self.world.main or engine.zero == 3):  # otherwise the live model is another
            live = self._trial(engine.module)
        if self.config.model.lora.r and adapter_folder is not None:
            adapter = {n: t.to("cpu", copy=True) for n, t in engine.weights(lambda name: ".lora_" in name)}
            if self.world.main:
                base = locate.find(self.config.model, self.start.source)
                export.save_adapter(
                    engine.module, adapter, self.tokenizer, adapter_folder, base=base
                )  # fmt: skip
        weights = engine.weights()
        if scale != 1:
            masters = {name: tensors["weight"] for name, tensors in engine.state() if tensors}
            if self.world.main:
                start = self._read(self.start.source).state_dict()
                whole = keeps_remainders(self.config.hardware)
                weights = export.extrapolated(start, weights, scale, masters, rounded=not whole)
        with replacing(folder) if self.world.main else nullcontext(folder) as part:
            if self.world.main:
                export.save_streamed(engine.module, weights, self.tokenizer, part)
            for _ in weights:  # the other processes' part of gathering them
                pass

            def verified() -> None:
                if live is not None:
                    self._verify(live, part, folder.name)

            self.world.on_main(verified)
        self.world.barrier()

    def _trial(self, model: nn.Module) -> Trial:
        trained = training_sets(self.config)
        sets = {name: rows for name, rows in self.sets.items() if name in trained} or self.sets
        return trial(model, self.encoder, sets, self.world.device)

    def _verify(self, live: Trial, folder: Path, name: str) -> None:
        verify(live, folder, self.config.model, self.encoder, self.world.device, name=name)


class _LazyEngine:
    """The engine of the model that will be trained; as long as nothing was trained it is the reference."""

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
            free_memory()

    def take(self, tensors: Mapping[str, Tensor]) -> Engine:
        """The engine to train with, its model loaded with a checkpoint's tensors where there are any."""
        weights = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        if weights:  # an engine may have cut the model in parts
            self.close()
        if self._engine is None:
            model = self._model()
            stored.replace(model, weights)
            self._engine = self._make(model)
        return self._engine


class _Batches:
    """Batches of a set's examples, as often as they are asked for."""

    def __init__(self, encoder: Any, examples: list[Example], max_tokens: int, world: World) -> None:
        self._sequences = encoder.answers(examples)
        self._max_tokens, self._world = max_tokens, world

    def __iter__(self) -> Iterator[Batch]:
        (mine,) = deal([len(s.ids) for s in self._sequences], 1, max_tokens=self._max_tokens)
        for rows in mine:
            yield collate([self._sequences[i] for i in rows]).to(self._world.device)
