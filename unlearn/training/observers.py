"""What watches a training and changes nothing: its history, evaluations, kept models and a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from unlearn.rules import Rule
from unlearn.run_dir import RunDir
from unlearn.training.step_data import Frozen


class Logger(Protocol):
    """What the trainer tells of its steps; the files are written by the trainer itself."""

    def log(self, row: Mapping[str, float], step: int) -> None: ...


@dataclass(frozen=True)
class History:
    """Rows of numbers by step, in the run's directory and at its tracker; written by the main process."""

    rundir: RunDir
    tracker: Logger
    main: bool = True

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row, which has its `step`."""
        if self.main:
            self.rundir.append_history(row)
            self.tracker.log(row, int(row["step"]))

    def cut(self, step: int) -> None:
        """Drop what was written after a step, which is about to come again."""
        if self.main:
            self.rundir.cut_history(step)


@dataclass(frozen=True)
class ProbeContext:
    """When a probe measures: after `step` updates, at a peak learning `rate`; how terms make an update."""

    step: int
    rate: float
    rule: Rule
    frozen: Frozen


class Probe(Protocol):
    """What the trainer calls of a probe; the whole contract is `unlearn.probes.Probe`."""

    def due(self, step: int, total: int) -> bool: ...

    def measure(self, context: ProbeContext) -> dict[str, float]: ...


@dataclass(frozen=True)
class Observers:
    """What is called between steps, with the number of steps made; each every so many of them.

    `evaluate` returns what it measured, for the history; `keep_model` saves a copy of the model; `probe`
    decides itself when it is due.
    """

    evaluate: Callable[[int], Mapping[str, float]] | None = None
    evaluate_every: int | None = None
    keep_model: Callable[[int], None] | None = None
    keep_every: int | None = None
    probe: Probe | None = None
