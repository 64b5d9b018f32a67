"""How the tasks of a Slurm step speak to each other: through a key-value store on the first one's node.

Their workers meet at the same store, as do those of a command that is no task of a step.
"""

from __future__ import annotations

import json
import socket
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from threading import Thread
from typing import Any

from launch.run.slurm_task import Task, node
from unlearn.errors import UserError

MEETING = 600.0
"""Seconds that the tasks of a step wait for each other to begin a run: imports can take minutes."""
SILENCE = 60.0
"""Seconds without a sign of life after which a task counts as lost."""
_BEAT = 0.5
_POLITE = 5.0  # seconds that one waits for an answer at a door
_PORTS = range(20000, 32000)  # below those that Linux gives to outgoing connections


class TaskLost(UserError):
    """Another task of the step cannot be reached."""


class Team:
    """The tasks of a step around their store. A run is one round; what is said in another is not heard."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._store: Any = None
        self._round = 0
        self._beaten = 0.0
        self._seen: dict[int, tuple[int, float]] = {}

    @property
    def others(self) -> range:
        return range(1, self.task.count)

    @property
    def rendezvous(self) -> dict[str, str]:
        """Where the workers of this round meet, as `unlearn.distributed` reads it."""
        self._meet()
        return {
            "MASTER_ADDR": self.task.leader,
            "MASTER_PORT": str(self._store.port),
            "UNLEARN_MEETING": f"workers/{self._round}",
        }

    def begin(self) -> None:
        """Begin the next run; every task begins the same ones in the same order."""
        self._round += 1
        self._seen.clear()

    def say(self, key: str, value: Any = True) -> None:
        self._meet()
        with self._reaching():
            self._store.set(self._full(key), json.dumps(value))

    def heard(self, key: str) -> Any:
        """What was said under a key; None as long as nothing was."""
        self.show_life()
        with self._reaching():
            key = self._full(key)
            return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def wait(self, key: str, limit: float | None = None, late: str = "") -> Any:
        """What is said under a key, once it is.

        Raises:
            TaskLost: with the message `late`, after `limit` seconds.
        """
        until = None if limit is None else time.monotonic() + limit
        while (said := self.heard(key)) is None:
            if until is not None and time.monotonic() > until:
                raise TaskLost(late)
            time.sleep(0.1)
        return said

    def silent(self, task: int) -> bool:
        """Whether a task that follows has shown no life for a while; to be asked again and again."""
        with self._reaching():
            beat = self._store.add(self._full(f"beat/{task}"), 0)
        before, since = self._seen.get(task, (-1, 0.0))
        if beat != before:
            self._seen[task] = (beat, time.monotonic())
            return False
        return time.monotonic() - since > SILENCE

    def show_life(self) -> None:
        """To be called every few seconds by a task that follows; whoever listens does it by that."""
        self._meet()
        if not self.task.leads and time.monotonic() - self._beaten > _BEAT:
            self._beaten = time.monotonic()
            with self._reaching():
                self._store.add(self._full(f"beat/{self.task.number}"), 1)

    def _full(self, key: str) -> str:
        return f"run/{self._round}/{key}"

    def _meet(self) -> None:
        if self._store is None:
            self._store = _host(self.task) if self.task.leads else _join(self.task)

    def _reaching(self) -> _Reaching:
        return _Reaching(self.task)


@dataclass(frozen=True)
class _Reaching:
    """Turns the store's errors into one that says who is gone."""

    task: Task

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from torch.distributed import DistError

        if isinstance(error, DistError):
            raise TaskLost(
                f"task 0 of step {self.task.step} on {self.task.leader} has ended or cannot be reached: its "
                "output tells why. Started again, the run continues from its last checkpoint"
            ) from error


@cache
def team_of(task: Task) -> Team:
    """The team of this process; its store lives as long as the process."""
    return Team(task)


def _ports(step: str) -> list[int]:
    """The same on every task, and other ones for another step; several, since one may be taken."""
    return [_PORTS[zlib.crc32(f"{step}/{each}".encode()) % len(_PORTS)] for each in range(4)]


def _host(task: Task) -> Any:
    """The store itself, at a port that is free. Other tasks are told it at a door where they look for it."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    if task.count > 1:
        door = _door(_ports(task.step))
        Thread(target=_let_in, args=(door, task, store.port), daemon=True).start()
    return store


def _door(ports: list[int]) -> socket.socket:
    for port in ports:
        try:
            return socket.create_server(("", port))
        except OSError:
            continue
    raise UserError(f"the ports {ports} of {node()} are all taken: start the job again")


def _let_in(door: socket.socket, task: Task, port: int) -> None:
    """Tell every other task once where the store is; then the door is free for the step's next command."""
    expected = {f"{task.step}/{number}" for number in range(1, task.count)}
    with door:
        while expected:
            with suppress(OSError), door.accept()[0] as guest:
                guest.settimeout(_POLITE)
                if (name := guest.makefile().readline().strip()) in expected:
                    guest.sendall(f"{task.step}/{port}\n".encode())
                    expected.discard(name)


def _join(task: Task) -> Any:
    from torch.distributed import TCPStore

    until = time.monotonic() + MEETING
    while time.monotonic() < until:
        for door in _ports(task.step):
            if (port := _knock(task, door)) is not None:
                patience = timedelta(seconds=SILENCE)
                return TCPStore(task.leader, port, is_master=False, wait_for_workers=False, timeout=patience)
        time.sleep(0.2)
    raise TaskLost(
        f"{task.name} found no task 0 of step {task.step} at {task.leader}, ports {_ports(task.step)}, "
        f"within {MEETING:.0f} s: it ended early (see its output), or a firewall is between the nodes"
    )


def _knock(task: Task, door: int) -> int | None:
    """The store's port, if it is the leader's door."""
    with suppress(OSError), socket.create_connection((task.leader, door), timeout=_POLITE) as host:
        host.sendall(f"{task.step}/{task.number}\n".encode())
        step, _, port = host.makefile().readline().strip().rpartition("/")
        return int(port) if step == task.step and port.isdigit() else None
    return None
