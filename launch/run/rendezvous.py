"""The rendezvous of the tasks of a Slurm step: a key-value store in the process of the first task.

Worker processes use the same store for their process group, also those of a command outside of a step. The
store listens on a free port. The other tasks get its number from a bootstrap port, which they compute from
the step's id.
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

RENDEZVOUS_TIMEOUT = 600.0
"""Seconds that a task waits for the others to begin a run: imports can take minutes."""
HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a heartbeat after which a task counts as lost."""
_HEARTBEAT = 0.5  # seconds between heartbeats
_BOOTSTRAP_TIMEOUT = 5.0  # bootstrap socket timeout, seconds
_LONGEST = 1000  # characters of a line on a bootstrap port
PORTS = range(20000, 32000)  # below the ports that Linux gives to outgoing connections


class TaskLost(UserError):
    """Another task of the step cannot be reached."""


class Team:
    """The tasks of a step and their store. Each run is a round with its own keys."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._store: Any = None
        self._round = 0
        self._last_beat = 0.0
        self._beats: dict[int, tuple[int, float]] = {}  # by task: count, and when it last changed

    @property
    def others(self) -> range:
        return range(1, self.task.count)

    @property
    def rendezvous(self) -> dict[str, str]:
        """The environment variables from which `unlearn.distributed` connects to the store in this round."""
        self._connect()
        return {
            "MASTER_ADDR": self.task.leader,
            "MASTER_PORT": str(self._store.port),
            "UNLEARN_STORE_PREFIX": f"workers/{self._round}",
        }

    def begin(self) -> None:
        """Begin the next run; every task begins the same runs in the same order."""
        self._round += 1
        self._beats.clear()

    def set(self, key: str, value: Any = True) -> None:
        """Set a key of this round to a JSON value.

        Raises:
            TaskLost: the first task has ended.
        """
        self._connect()
        with self._reaching():
            self._store.set(self._full(key), json.dumps(value))

    def get(self, key: str) -> Any:
        """Return the value of a key, None before it is set. Also sends a heartbeat.

        Raises:
            TaskLost: the first task has ended.
        """
        self.beat()
        with self._reaching():
            key = self._full(key)
            return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def wait(self, key: str, limit: float | None = None, late: str = "") -> Any:
        """Wait until a key is set and return its value.

        Raises:
            TaskLost: with the message `late`, after `limit` seconds.
        """
        deadline = None if limit is None else time.monotonic() + limit
        while (value := self.get(key)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TaskLost(late)
            time.sleep(0.1)
        return value

    def is_lost(self, task: int) -> bool:
        """Return whether the heartbeats of another task have stopped; only repeated calls can detect it."""
        with self._reaching():
            count = self._store.add(self._full(f"beat/{task}"), 0)
        before, since = self._beats.get(task, (-1, 0.0))
        if count != before:
            self._beats[task] = (count, time.monotonic())
            return False
        return time.monotonic() - since > HEARTBEAT_TIMEOUT

    def beat(self) -> None:
        """Send a heartbeat if one is due. All tasks except the first call this repeatedly."""
        self._connect()
        if not self.task.leads and time.monotonic() - self._last_beat > _HEARTBEAT:
            self._last_beat = time.monotonic()
            with self._reaching():
                self._store.add(self._full(f"beat/{self.task.number}"), 1)

    def _full(self, key: str) -> str:
        return f"run/{self._round}/{key}"

    def _connect(self) -> None:
        if self._store is None:
            self._store = _host(self.task) if self.task.leads else _join(self.task)

    def _reaching(self) -> _Reaching:
        return _Reaching(self.task)


@dataclass(frozen=True)
class _Reaching:
    """Converts errors of the store to a `TaskLost` that names the first task."""

    task: Task

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from torch.distributed import DistError

        if isinstance(error, DistError):
            raise TaskLost(
                f"task 0 of step {self.task.step} on {self.task.leader} has ended or cannot be reached: its "
                "output says why. Started again, the run continues from its last checkpoint"
            ) from error


@cache
def team_of(task: Task) -> Team:
    """Return the team of this process; its store lives as long as the process."""
    return Team(task)


def ports(step: str) -> list[int]:
    """Return the bootstrap ports of a step, the same in every task; several, since one may be in use."""
    return [PORTS[zlib.crc32(f"{step}/{each}".encode()) % len(PORTS)] for each in range(4)]


def _host(task: Task) -> Any:
    """Return the store on a free port; a thread sends the port to the other tasks."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    if task.count > 1:
        server = _listen(ports(task.step))
        Thread(target=_send_port, args=(server, task, store.port), daemon=True).start()
    return store


def _listen(ports: list[int]) -> socket.socket:
    """Return a socket on the first free bootstrap port."""
    for port in ports:
        try:
            return socket.create_server(("", port))
        except OSError:
            continue
    raise UserError(f"the ports {ports} of {node()} are all taken: start the job again")


def _send_port(server: socket.socket, task: Task, port: int) -> None:
    """Send the store's port once to every other task, then free the bootstrap port for the next command."""
    expected = {f"{task.step}/{number}" for number in range(1, task.count)}
    with server:
        while expected:
            with suppress(OSError), server.accept()[0] as client:
                client.settimeout(_BOOTSTRAP_TIMEOUT)
                if (name := _line(client)) in expected:
                    client.sendall(f"{task.step}/{port}\n".encode())
                    expected.discard(name)


def _join(task: Task) -> Any:
    """Return the store of the first task, once one of the bootstrap ports answers."""
    from torch.distributed import TCPStore

    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT
    while time.monotonic() < deadline:
        for bootstrap in ports(task.step):
            if (port := _ask_port(task, bootstrap)) is not None:
                timeout = timedelta(seconds=HEARTBEAT_TIMEOUT)
                return TCPStore(task.leader, port, is_master=False, wait_for_workers=False, timeout=timeout)
        time.sleep(0.2)
    raise TaskLost(
        f"{task.name} cannot connect to task 0 of step {task.step} at {task.leader}, ports "
        f"{ports(task.step)}, within {RENDEZVOUS_TIMEOUT:.0f} s: task 0 ended early (see its output), or a "
        "firewall is between the nodes"
    )


def _ask_port(task: Task, bootstrap: int) -> int | None:
    """Return the store's port; None if this step's first task does not listen on the bootstrap port."""
    address = (task.leader, bootstrap)
    with suppress(OSError), socket.create_connection(address, timeout=_BOOTSTRAP_TIMEOUT) as host:
        host.sendall(f"{task.step}/{task.number}\n".encode())
        step, _, port = _line(host).rpartition("/")
        return int(port) if step == task.step and port.isdigit() else None
    return None


def _line(other: socket.socket) -> str:
    """Return the next line from a socket, whatever bytes a program that is none of the step's sends."""
    return other.makefile(errors="replace").readline(_LONGEST).strip()
