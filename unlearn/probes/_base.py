"""The contract of a probe, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn.config import RunConfig, Section

if TYPE_CHECKING:
    from unlearn.data.example import Example
    from unlearn.data.tokenization import Encoder
    from unlearn.terms import Term
    from unlearn.training.engine import Engine
    from unlearn.training.observers import ProbeContext
    from unlearn.training.step_data import Group


WATCHED = ("forget", "retain")
"""The sets that every probe gets where the dataset has them; the G-effect measures their risk."""


@dataclass(frozen=True)
class WatchedRun:
    """A run as its probe gets it; the same on every process, except for what the engine holds.

    - `config`: the run's; over saved models with `probe.method` as its method.
    - `engine`: the model that is trained, or one that was saved.
    - `terms`: those of the method, bound.
    - `groups`: the tokens of the forget and the retain set and of the probe's own `sets`, where the dataset
      has them, and of all sets that the terms are on, with what frozen models computed for the terms.
    - `sets`: the examples they come from.
    - `directory`: the run's.
    """

    config: RunConfig
    engine: Engine
    terms: Sequence[Term]
    groups: Mapping[str, Group]
    sets: Mapping[str, Sequence[Example]]
    encoder: Encoder
    directory: Path


class Probe:
    """Measures a model at chosen steps of its training, or models that were saved, and changes nothing.

    A probe is a subclass in a module of `unlearn.probes` or of your own, named by `probe.name`. Its options
    are further keys of `probe`, with other names than the keys of `ProbeConfig`. Every process of the run
    makes these calls at the same time, so that a probe may use collectives; an error ends the run.

    1. `check`, before anything is loaded.
    2. The constructor, with the model in its engine: once per process in training; with `method=none` for the
       target and again for each saved model.
    3. `begin`, at the weights from which training starts, not when a training is continued; with
       `method=none` at the target, each time the command is started. The instance that measures may be
       another one: what `measure` needs of `begin` must be written to a file.
    4. `due`, before the first step and after each one, with the number of steps made and of all steps. Saved
       models are all measured.
    5. `measure`, where it is due.

    `measure` returns numbers for the history, by keys that begin with the probe's name and a slash:
    `history.jsonl`, the tracker and the report get those of the main process at this step, nothing if there
    are none. Weights, gradients, modes of modules and random states must be afterwards as they were before.
    Files go to a folder of the probe's name in the run's directory. A probe with other options is another
    run, in a directory of its own; what is trained stays the same.
    """

    Options: ClassVar[type[Section]] = Section
    sets: ClassVar[tuple[str, ...]] = ()
    """The sets of the data without which it cannot measure."""

    def __init__(self, options: Any, run: WatchedRun) -> None:
        self.options = options
        self.run = run

    @classmethod
    def check(cls, options: Any, config: RunConfig) -> list[str]:
        """Return what is wrong with the options for a run, each `option=value: why`, before any model."""
        return []

    def begin(self) -> None:
        """Take note of the weights before training."""

    def due(self, step: int, total: int) -> bool:
        """Return whether to measure after so many steps: 0, the last, and every `probe.every` between."""
        every = self.run.config.probe.every or max(1, total // 10)
        return step % every == 0 or step == total

    def measure(self, context: ProbeContext) -> dict[str, float]:
        """Return numbers for the history by key; {} where there are none."""
        raise NotImplementedError
