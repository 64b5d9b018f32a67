"""Stop a training on a signal, and write checkpoints from which it continues."""

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
from unlearn.errors import UserError
from unlearn.run_dir import RunDir

log = logging.getLogger(__name__)

# If writing a checkpoint takes longer than 5 seconds, the next one by time is at least ten times as much
# later: a large model would otherwise spend much of its time on checkpoints.
_LONG, _SPACED = 5.0, 10


class StopRequest:
    """A signal handler that records the request to stop after the current step."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int) -> None:
        log.warning("%s: stopping after this step", signal.Signals(number).name)
        self.received = True

    def received_by_any(self, world: World) -> bool:
        """Return whether any process received a signal. A collective."""
        received = torch.tensor(float(self.received), device=world.device)
        return bool(world.sum(received))


class Checkpoints:
    """Writes the checkpoints of a training, and decides when the next one is due.

    `started`: when this process began the run, in seconds of `time.monotonic`. Checkpoints by time count from
    it, so that a run that loads slowly and is killed repeatedly still makes progress.
    """

    def __init__(self, rundir: RunDir, config: CheckpointConfig, started: float | None = None) -> None:
        self.rundir, self.config = rundir, config
        started = time.monotonic() if started is None else started
        self._save_at, self._cheap_at = next_save(config.every_minutes, started, 0.0), started

    def due(self, step: int, total: int) -> bool:
        """Return whether a checkpoint is due after `step` of `total` steps, regardless of time."""
        return step % (self.config.every_steps or max(1, total // 10)) == 0

    def due_by_time(self, *, cheap: bool = False) -> bool:
        """Return whether a checkpoint is due by time; processes may differ.

        cheap: whether writing one would take a small part of the time since the last, whatever the setting.
        """
        return time.monotonic() >= (self._cheap_at if cheap else self._save_at)

    def save(
        self, step: int, state: Iterable[tuple[str, Mapping[str, Tensor]]], facts: Mapping[str, Any],
        world: World,
    ) -> None:  # fmt: skip
        """Write the checkpoint of a step: the engine's state, and facts as JSON. A collective.

        Raises:
            UserError: the disk is full; on every process.
        """
        begun = time.monotonic()
        failed: UserError | None = None
        parts = iter(state)
        try:
            self.rundir.save_checkpoint(step, parts, facts, keep=self.config.keep, write=world.main)
        except UserError as error:
            failed = error
            for _ in parts:  # the others gather the rest
                pass

        def outcome() -> None:
            if failed is not None:
                raise failed

        world.on_main(outcome)
        ended = time.monotonic()
        self._save_at = next_save(self.config.every_minutes, ended, ended - begun)
        self._cheap_at = ended + _SPACED * (ended - begun)

    def newest(self) -> Path | None:
        """Return the folder of the newest checkpoint."""
        return self.rundir.newest_checkpoint()


def next_save(every_minutes: float | None, ended: float, took: float) -> float:
    """Return when the next checkpoint by time is due, after one that ended at `ended` and took `took` s."""
    if every_minutes is None:
        return math.inf
    return ended + max(60 * every_minutes, _SPACED * took if took > _LONG else 0)
