"""Being stopped and going on later: signals that ask a training to stop, and when checkpoints are written."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn.config import CheckpointConfig
from unlearn.distributed import World
from unlearn.run_dir import RunDir

log = logging.getLogger(__name__)

# Where writing a checkpoint takes longer than so many seconds, the next one by time is after ten times as
# long at the earliest: a large model would otherwise spend much of its time on them.
_LONG, _SPACED = 5.0, 10


class StopRequest:
    """Notes that a signal asked this process to stop after the current step; a handler of signals."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int) -> None:
        log.warning("%s: stopping after this step", signal.Signals(number).name)
        self.received = True

    def received_by_any(self, world: World) -> bool:
        """Return whether a signal came to any process. A collective."""
        received = torch.tensor(float(self.received), device=world.device)
        return bool(world.sum(received))


class Checkpoints:
    """Writes the checkpoints of a training, and knows when the next one is due.

    `started`: when this process began the run, in seconds of `time.monotonic`; checkpoints by time count
    from there, so that a run that is killed again and again and takes long to load goes on nevertheless.
    """

    def __init__(self, rundir: RunDir, config: CheckpointConfig, started: float | None = None) -> None:
        self.rundir, self.config = rundir, config
        started = time.monotonic() if started is None else started
        self._save_at = next_save(config.every_minutes, started, 0.0)

    def due(self, step: int, total: int) -> bool:
        """Return whether one is due after this many of all steps, whatever the time."""
        return step % (self.config.every_steps or max(1, total // 10)) == 0

    def due_by_time(self) -> bool:
        """Return whether the time for one has come; processes may differ."""
        return time.monotonic() >= self._save_at

    def save(
        self, step: int, state: Iterable[tuple[str, Mapping[str, Tensor]]], facts: Mapping[str, Any],
        world: World,
    ) -> None:  # fmt: skip
        """Write the checkpoint of a step: the engine's state, and facts as JSON. A collective."""
        begun = time.monotonic()
        self.rundir.save_checkpoint(step, state, facts, keep=self.config.keep, write=world.main)
        world.barrier()
        ended = time.monotonic()
        self._save_at = next_save(self.config.every_minutes, ended, ended - begun)

    def newest(self) -> Path | None:
        """Return the folder of the newest checkpoint."""
        return self.rundir.newest_checkpoint()


def next_save(every_minutes: float | None, ended: float, took: float) -> float:
    """Return when the next checkpoint by time is due, after one that ended at `ended` and took so long."""
    if every_minutes is None:
        return math.inf
    return ended + max(60 * every_minutes, _SPACED * took if took > _LONG else 0)
