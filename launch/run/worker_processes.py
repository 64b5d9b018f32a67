"""Start, watch and terminate the worker processes of one task of a run."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unlearn.signals import STOPPED, Stopped

log = logging.getLogger(__name__)

_GRACE = 10.0  # seconds from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Report:
    """How the workers of a task ended.

    `failed`: exit codes by rank of the workers that failed by themselves. `stopped`: a signal to the task
    stopped the workers. `broken`: a worker failed or did not start, so the workers of other tasks cannot
    finish. `error`: why no worker was started.
    """

    node: str
    failed: Mapping[int, int] = field(default_factory=dict)
    stopped: bool = False
    broken: bool = False
    error: str | None = None


class Workers:
    """The worker processes of this task, one for each mapping of `environments` (RANK and others)."""

    def __init__(self, directory: Path, environments: Sequence[Mapping[str, str]], node: str) -> None:
        self._directory, self._environments, self._node = directory, environments, node
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started = False
        self._signal: int | None = None
        self._ended = self._stopped = False
        self._failed: dict[int, int] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, rendezvous: Mapping[str, str], kept_open: tuple[int, ...] = ()) -> None:
        """Start the workers with the variables of their rendezvous; they inherit these file descriptors."""
        # -P: a file of the working directory that has the name of a package is not taken for it.
        command = [sys.executable, "-P", "-m", "launch.run.worker", str(self._directory.absolute())]
        self._started = True
        for variables in self._environments:
            rank = int(variables["RANK"])
            # The main process has the terminal, for its progress bar; the others write a log.
            output = None if rank == 0 else log_of(self._directory, rank).open("w")
            environment = {**os.environ, **variables, **rendezvous}
            self._running[rank] = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, pass_fds=kept_open
            )
            if output is not None:
                output.close()

    def poll(self) -> bool:
        """Return whether a worker still runs. If one failed, end the others, which wait in a collective."""
        for rank, worker in list(self._running.items()):
            if (code := worker.poll()) is None:
                continue
            del self._running[rank]
            if not self._ended:  # `end` causes the later exits
                self._stopped = self._stopped or code == STOPPED
                self._failed |= {rank: code} if code not in (0, STOPPED) else {}
        if self._failed:
            self.end()
        return bool(self._running)

    def forward(self, number: int) -> None:
        """Send a signal to the workers, which stop after a checkpoint.

        Raises:
            Stopped: no worker has been started yet.
        """
        self._signal = number
        if not self._started:
            raise Stopped(f"{self._directory}: stopped by {signal.Signals(number).name} before it began")
        for worker in self._running.values():
            if worker.poll() is None:
                worker.send_signal(number)

    def end(self) -> None:
        """Terminate the workers, and kill those that do not exit within the grace time."""
        self._ended = True
        for worker in self._running.values():
            if worker.poll() is None:
                worker.terminate()
        deadline = time.monotonic() + _GRACE
        for worker in self._running.values():
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    @property
    def broken(self) -> bool:
        return bool(self._failed)

    def report(self, error: str | None = None) -> Report:
        """Return how the workers ended; to be called when no worker runs."""
        # Outside of training, a forwarded signal ends a worker with the code −signal.
        by_signal = self._signal is not None and any(code == -self._signal for code in self._failed.values())
        failed = {} if by_signal else self._failed
        stopped = self._stopped or by_signal or (self._signal is not None and not self._started)
        return Report(self._node, failed, stopped, self.broken or not self._started, error)


@contextmanager
def after_killed_workers(directory: Path) -> Iterator[tuple[int, ...]]:
    """Wait for workers of a command that was killed, and yield a descriptor for those of this one to inherit.

    The run's own lock ends with its command, whose workers, if it is killed, still write a checkpoint. This
    one ends with the last process that has it.
    """
    lock = directory / ".workers"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: processes of a killed command still end: waiting (%s)", directory, lock.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield ()
            return
        yield (file.fileno(),)


def log_of(directory: Path, rank: int) -> Path:
    """Return the log file of a process."""
    return directory / ("run.log" if rank == 0 else f"process-{rank}.log")
