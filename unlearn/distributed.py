"""The processes of a run: who this one is, what it does of a pass, and how the parts come together."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from unlearn.errors import UserError

T = TypeVar("T")

_PASSES = count()  # passes so far; as they are collectives, every process has counted the same


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, and the device of its tensors.

    With `synced` every process must call the model equally often, because each call is a collective
    (parameters sharded by ZeRO-3).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    synced: bool = False

    @property
    def main(self) -> bool:
        return self.rank == 0

    def with_synced(self, synced: bool) -> World:
        """The same processes, for passes of a model whose calls are (or are not) collectives."""
        return replace(self, synced=synced)

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
        """Yield the parts of a pass, dealt as `bins[rank][round]`, that this process does. A collective.

        Each part is done by one process. Synced, a process takes its own part of every round, empty ones too;
        otherwise whichever process is free takes the next part that is not empty, and none waits for another.
        """
        if self.synced:
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
        """Call a function on the main process alone, and return its value on all. A collective.

        Raises:
            UserError: the call raised one. It is raised on all, so that none waits for the main process.
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

_PATIENCE = timedelta(minutes=10)  # with processes whose imports take longer
_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def start_world(device: str) -> World:
    """Join the processes of this run, or start a world of one.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are as torchrun sets them. With UNLEARN_MEETING
    the store at that port is there already, and this prefix of its keys is the run's.
    """
    from accelerate import PartialState  # a second of imports, which passes without training do not need
    from accelerate.state import AcceleratorState

    backend = "gloo" if device == "cpu" else "nccl"
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone:
        # DeepSpeed looks for MPI when these are absent.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not dist.is_initialized():
        if alone:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            atexit.register(_leave)
        elif (prefix := os.environ.get("UNLEARN_MEETING")) is not None:
            _stop_with_parent()
            dist.init_process_group(
                backend, store=_store(prefix), rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
            )  # fmt: skip
        else:
            dist.init_process_group(backend)
    # Whatever else used Accelerate in this process left it without DeepSpeed.
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.nn.functional.linear = torch._C._nn.linear  # a run that failed under ZeRO 3 leaves another there
    state = PartialState(cpu=device == "cpu")
    return World(state.process_index, state.num_processes, state.device)


def _store(prefix: str) -> dist.Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_PATIENCE)
    return dist.PrefixStore(prefix, store)


def _stop_with_parent() -> None:
    """Let a killed command take its processes with it: the next one may write where they do (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGTERM)


def _leave() -> None:
    if dist.is_initialized():  # NCCL warns of a group that is still there at the end
        dist.destroy_process_group()


def stop_world() -> None:
    """Let another run start in this process, or end one of several processes in good order."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    # A world of one stays for the next run: DeepSpeed keeps handles to its group.
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
