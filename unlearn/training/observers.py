"""Observers of a training: its history, evaluations, saved models and a probe. They change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unlearn.rules import Rule
from unlearn.run_dir import RunDir
from unlearn.training.step_data import Frozen


class Logger(Protocol):
    """Receives the rows of steps; `History` writes the files itself."""

    def log(self, row: Mapping[str, float], step: int) -> None: ...


@dataclass(frozen=True)
class History:
    """Writes rows of numbers by step to the run's directory and its tracker, on the main process."""

    rundir: RunDir
    tracker: Logger
    main: bool = True

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row, whose `step` is one of its keys."""
        if self.main:
            self.rundir.append_history(row)
            self.tracker.log(row, int(row["step"]))

    def cut(self, step: int) -> None:
        """Drop the rows after a step, from which the training continues."""
        if self.main:
            self.rundir.cut_history(step)


@dataclass(frozen=True)
class ProbeContext:
    """The training as a probe measures it: after `step` updates, with peak learning `rate` and `rule`.

    `kept` is this process's share of the gradient that the rule keeps; None for zero.
    """

    step: int
    rate: float
    rule: Rule
    frozen: Frozen
    kept: list[Tensor] | None = None


class StepProbe(Protocol):
    """The part of `unlearn.probes.Probe` that the trainer calls."""

    def due(self, step: int, total: int) -> bool: ...

    def measure(self, context: ProbeContext) -> dict[str, float]: ...


class Selection(Protocol):
    """The part of `unlearn.training.step_selection.StepSelection` that the trainer calls."""

    def add(self, step: int, measured: Mapping[str, float], *, last: bool) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Functions called between steps, with the number of steps made, every `…_every` steps.

    `evaluate` returns metrics for the history; `keep_model` saves a copy of the model; `probe` decides itself
    when it is due. With a `selection`, which chooses among the evaluated steps, the last is evaluated too.
    """

    evaluate: Callable[[int], Mapping[str, float]] | None = None
    evaluate_every: int | None = None
    keep_model: Callable[[int], None] | None = None
    keep_every: int | None = None
    probe: StepProbe | None = None
    selection: Selection | None = None
