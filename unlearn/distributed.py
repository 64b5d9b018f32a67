"""The process group of a run: rank and size, the rank's share of a pass, and collectives."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from unlearn.errors import UserError
from unlearn.passes.memory_limits import MemoryLimits
from unlearn.passes.products import LINEAR

T = TypeVar("T")

_PASSES = count()  # passes so far; the same on every process, as passes are collectives


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, and the device of its tensors.

    `collective_forward`: each call of the model is a collective (parameters sharded by ZeRO-3), so every
    process must make the same number of calls. `limits`: how much fits in the memory of these processes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    collective_forward: bool = False
    limits: MemoryLimits = field(default_factory=MemoryLimits, compare=False)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def with_collective_forward(self, collective_forward: bool) -> World:
        """Return the same processes for a model whose calls are, or are not, collectives."""
        return replace(self, collective_forward=collective_forward)

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, on each of them. A collective."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def mine(self, bins: Sequence[Sequence[list[int]]]) -> Iterator[list[int]]:
        """Yield this process's parts of a pass that is split as `bins[rank][round]`. A collective.

        Each part belongs to one process. With `collective_forward` a process takes its part of every round,
        also empty ones. Otherwise a free process takes the next part that is not empty, and no process waits.
        """
        if self.collective_forward:
            yield from bins[self.rank]
            return
        parts = [part for each in zip(*bins, strict=True) for part in each if part]
        if self.size == 1:
            yield from parts
            return
        key, store = f"unlearn/pass/{next(_PASSES)}", distributed_c10d._get_default_store()
        while (turn := store.add(key, 1) - 1) < len(parts):
            yield parts[turn]

    def gather(self, part: list[T]) -> list[T]:
        """Concatenate the lists of all processes in the order of their ranks. A collective."""
        if self.size == 1:
            return part
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, part)
        return [value for each in parts for value in each]

    def on_main(self, call: Callable[[], T]) -> T:
        """Call a function on the main process only, and return its value on all. A collective.

        Raises:
            UserError: the call raised one. All processes raise it, so that none waits for the main process.
        """
        outcome: list[tuple[T | None, str | None]] = []
        failure: UserError | None = None
        if self.main:
            try:
                outcome = [(call(), None)]
            except UserError as error:
                failure, outcome = error, [(None, str(error))]
        value, message = self.gather(outcome)[0]
        if message is not None:
            raise failure or UserError(message)
        return cast(T, value)


ALONE = World()
"""One process, on the CPU."""

COLLECTIVE_TIMEOUT = timedelta(hours=12)
"""How long a collective waits for the other processes.

The main process writes checkpoints, checks downloads and scores alone meanwhile, which takes hours for the
largest models; NCCL's default is 10 minutes. A process that dies is noticed without it: its run ends.
"""
_START_TIMEOUT = timedelta(minutes=10)  # imports can take this long on some processes


def start_world(device: str) -> World:
    """Join the process group of this run, or start one of a single process.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are as torchrun sets them. If
    UNLEARN_STORE_PREFIX is set, the store at that port exists already, and its keys have this prefix.
    """
    from accelerate import PartialState  # imports take a second, and passes without training need none
    from accelerate.state import AcceleratorState

    backend = "gloo" if device == "cpu" else "nccl"
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone:
        # DeepSpeed looks for MPI when these are missing.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not dist.is_initialized():
        if alone:
            dist.init_process_group(
                backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT
            )
            atexit.register(_leave)
        elif (prefix := os.environ.get("UNLEARN_STORE_PREFIX")) is not None:
            store = _store(prefix)
            dist.init_process_group(
                backend, store=store, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
                timeout=COLLECTIVE_TIMEOUT,
            )  # fmt: skip
            # NCCL connects two processes, through the store, in the first collective that they share.
            store.set_timeout(COLLECTIVE_TIMEOUT)
        else:
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    # Earlier use of Accelerate in this process may have configured it without DeepSpeed.
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.nn.functional.linear = LINEAR  # a run that failed under ZeRO 3 leaves its own
    state = PartialState(cpu=device == "cpu")
    return World(state.process_index, state.num_processes, state.device)


def lengthen_timeouts() -> None:
    """Let all process groups wait as long: DeepSpeed makes its own with the default of torch."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT, group)


def _store(prefix: str) -> dist.Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_START_TIMEOUT)
    return dist.PrefixStore(prefix, store)


def _leave() -> None:
    if dist.is_initialized():  # NCCL warns of a group that still exists at exit
        dist.destroy_process_group()


def stop_world() -> None:
    """Leave the process group, so that another run can start in this process or the process can end."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    # A group of one process stays for the next run: DeepSpeed keeps handles to it.
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
