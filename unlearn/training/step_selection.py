"""The models of the steps that a rule chooses among: kept while they may be chosen, one taken at the end."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.run_dir import RunDir
from unlearn.selection import Candidate, Choice, Selector, needed

log = logging.getLogger(__name__)


class StepSelection:
    """Choose among the measured steps of one training. All calls are collective.

    `save` writes the model, and its adapter if there is one, to two folders; every process calls it. What was
    measured is in selection.json, so that a training that continues still has it.
    """

    def __init__(
        self, rundir: RunDir, world: World, selector: Selector, save: Callable[[Path, Path], None]
    ) -> None:
        self.rundir, self.world, self.selector, self._save = rundir, world, selector, save
        stored = world.on_main(lambda: rundir.read_selection().get("steps", {}))
        self.candidates = [_read(step, metrics) for step, metrics in stored.items()]

    @property
    def choice(self) -> Choice:
        """The choice among the steps measured so far."""
        return self.selector(self.candidates)

    def add(self, step: int, measured: Mapping[str, float], *, last: bool) -> None:
        """Take up what was measured of a step; save its model if it is chosen and more steps follow.

        Raises:
            UserError: the rule's metric was not measured.
        """
        if missing := [key for key in self.selector.keys if key not in measured]:
            raise UserError(
                f"eval.select: the evaluation of step {step} has no {', '.join(missing)}; choose a metric of "
                "results.json"
            )
        metrics = {key: float(measured[key]) for key in self.selector.keys}
        self.candidates = [each for each in self.candidates if each.step < step]  # later ones come again
        self.candidates.append(Candidate(step, metrics))
        choice = self.choice
        if choice.step == step and not choice.moves and not last:
            self._save(*self.rundir.selected(step))
        self.world.on_main(self._write)
        if not last:
            self.world.on_main(self._prune)

    def take(self) -> None:
        """Make the chosen step's saved model the run's model."""
        choice = self.choice
        log.info("the model is that of step %d of %d", choice.step, self.candidates[-1].step)

        def move() -> None:
            model, adapter = self.rundir.selected(choice.step)
            if adapter.is_dir():
                shutil.rmtree(self.rundir.adapter, ignore_errors=True)
                os.replace(adapter, self.rundir.adapter)
            os.replace(model, self.rundir.model)  # from now on the training is complete
            shutil.rmtree(self.rundir.selection)

        self.world.on_main(move)

    def _prune(self) -> None:
        kept = needed(self.candidates, self.selector, self.rundir.checkpoint_steps())
        for folder in self.rundir.selection.glob("step-*"):
            if folder.name.removeprefix("step-") not in {str(step) for step in kept}:
                shutil.rmtree(folder)

    def _write(self) -> None:
        choice = self.choice
        steps = {str(each.step): each.metrics for each in self.candidates}
        self.rundir.write_selection(
            {**self.selector.description, "chosen": choice.step, "met": choice.met, "steps": steps}
        )


def _read(step: str, metrics: Mapping[str, float | None]) -> Candidate:
    return Candidate(int(step), {k: math.nan if v is None else v for k, v in metrics.items()})
