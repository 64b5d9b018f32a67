"""One small training that chooses among its steps, for the tests and for the processes they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests.unlearn.training import small_training as training
from unlearn.config import HardwareConfig
from unlearn.distributed import stop_world
from unlearn.files import replacing
from unlearn.run_dir import RunDir
from unlearn.selection import Candidate, Choice
from unlearn.training.observers import Observers
from unlearn.training.step_selection import StepSelection

VALUES: Mapping[int, float] = {2: 0.1, 4: 0.5, 6: 0.9, 8: 0.2, 9: 0.3}
"""What is measured after the steps of the small training, which has nine."""


@dataclass(frozen=True)
class Largest:
    """Choose the first step with the largest value, above a floor."""

    floor: float = 0.0
    keys: Sequence[str] = ("value",)

    @property
    def description(self) -> dict[str, Any]:
        return {"floor": self.floor}

    def __call__(self, candidates: Sequence[Candidate]) -> Choice:
        above = [each for each in candidates if each.metrics["value"] >= self.floor]
        if not above:
            return Choice(candidates[-1].step, met=False, moves=True)
        return Choice(max(above, key=lambda each: each.metrics["value"]).step, met=True)


def train(
    directory: Path, hardware: HardwareConfig | None = None, *, floor: float = 0.0, values: Any = VALUES,
    checkpoint_at: int | None = None, stop_after: int | None = None,
) -> StepSelection:  # fmt: skip
    """Train to the end, and take the chosen step's model if it is not the last one.

    With `stop_after`, leave the training at that step as a killed process would, with a checkpoint of an
    earlier one.
    """
    hardware = hardware or HardwareConfig()
    trainer = training.make_trainer(directory, hardware)
    engine, rundir = trainer.engine, RunDir(directory)

    def save(folder: Path, adapter: Path) -> None:
        tied = "lm_head.weight"
        weights = {name: tensor.clone() for name, tensor in engine.weights(lambda name: name != tied)}
        if engine.world.main:
            with replacing(folder) as temporary:
                temporary.mkdir()
                save_file(weights, temporary / "model.safetensors")
        engine.world.barrier()

    selection = StepSelection(rundir, engine.world, Largest(floor), save)
    trainer.observers = Observers(
        evaluate=lambda step: {"value": values[step]}, evaluate_every=2, selection=selection
    )
    if stop_after is None:
        trainer.run()
        if selection.choice.step == trainer.total:
            save(rundir.model, rundir.adapter)
        else:
            selection.take()
    else:
        while trainer.steps_made < stop_after:
            trainer.step()
            if trainer.steps_made == checkpoint_at:
                trainer.save()
            trainer.observe()
    engine.close()
    return selection


def run(directory: Path, hardware: Mapping[str, Any]) -> None:
    """Train in one of several processes."""
    train(directory, HardwareConfig(**hardware))
    stop_world()
