"""Trainers of any method on one model and dataset, with the outputs of frozen models computed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from benches.cases import RATE, SHARED, Silent, settings
from benches.presets import BATCH
from unlearn import interventions
from unlearn.config import (
    DatasetConfig,
    HardwareConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
)
from unlearn.data.sources import load_sets
from unlearn.distributed import start_world, stop_world
from unlearn.models import adapt
from unlearn.models import load as models
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.terms import bind, training_sets
from unlearn.training.engine import Engine
from unlearn.training.observers import History
from unlearn.training.prepare import FrozenModel, Preparation, resolve_refusals
from unlearn.training.step_data import Group, TrainingData
from unlearn.training.trainer import Trainer, TrainSettings

# Of each set: some steps' worth, so that frozen models have little to read.
EXAMPLES = 4 * BATCH


class Workshop:
    """TOFU on a Llama of 4.3M parameters; without them, the synthetic authors on an untrained model.

    `make` returns another model instead, for the tokenizer of the nano model and the synthetic authors.
    """

    def __init__(
        self, folder: Path, hardware: HardwareConfig | None = None, make: Callable[[], Any] | None = None
    ) -> None:
        tofu, target = SHARED / "data" / "tofu", SHARED / "models" / "nano-tofu-retain90"
        exists = make is None and target.is_dir() and tofu.is_dir()
        path = {"path": str(tofu)} if exists else {}
        self.data = DatasetConfig(
            **{**settings("dataset", "tofu" if exists else "authors"), **path, "limit": EXAMPLES}
        )
        self.model = ModelConfig(**settings("model", "nano"))
        self.source = str(target) if exists else None
        self.hardware = hardware or HardwareConfig(**settings("hardware", "cpu"))
        label = "nano-tofu (4.3M)" if exists else "nano, untrained (1M)"
        self.title = f"{label}, {self.data.name}, {BATCH}+{BATCH} examples"
        tokenizer = load_tokenizer(self.model, self.source)
        self.encoder = make_encoder(self.model, tokenizer, self.data.max_length)
        self._folder, self._number, self._make = folder, count(), make

    def config(self, method: MethodConfig) -> RunConfig:
        """Return the configuration of a run of this method."""
        return RunConfig(
            model=self.model, dataset=self.data, method=method, hardware=self.hardware, root=str(self._folder)
        )

    def trainer(self, method: MethodConfig, groups: Mapping[str, Group] | None = None) -> Trainer:
        """Return a trainer that is ready for its first step, on the texts or on these token sequences."""
        config = self.config(method)
        stop_world()  # Accelerate knows one engine at a time
        world = start_world(self.hardware.device)
        terms = resolve_refusals(models.resolve_layers(bind(method), self.model, self.source), self.encoder)
        ready = Preparation(config, terms, load_sets(self.data, training_sets(config)), self.encoder, world)
        # The reinforced model costs what the target does, so that none has to be trained.
        target = FrozenModel("target", self._target, _as_it_is)
        groups, frozen = ready.with_frozen_outputs(
            groups or ready.groups(target), {"reference": target, "reinforced": target}
        )
        engine = Engine(
            self._start(method), world, self.hardware, clip=clip_norm(method),
            weight_decay=method.weight_decay, betas=method.betas,
        )  # fmt: skip
        engine.model.train()
        rundir = RunDir(self._folder / f"{next(self._number)}")
        rundir.path.mkdir()
        return Trainer(
            engine,
            terms,
            TrainingData(groups, frozen, pad_id=self.encoder.pad_id),
            TrainSettings(method, self.hardware, RATE, progress=False),
            History(rundir, Silent()),
        )

    def _start(self, method: MethodConfig) -> Any:
        model = self._load()
        if method.intervention is not None:
            shape = model.config
            interventions.make(
                method.intervention, hidden_size=shape.hidden_size, layers=shape.num_hidden_layers, seed=0
            ).attach(model)
        if method.train is not None:
            adapt.train_only(model, method.train)
        if self.hardware.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def _load(self) -> Any:
        return models.load_model(self.model, self.source) if self._make is None else self._make()

    @contextmanager
    def _target(self) -> Iterator[tuple[nn.Module, bool]]:
        yield self._load(), False


@contextmanager
def _as_it_is(_: nn.Module) -> Iterator[None]:
    yield
