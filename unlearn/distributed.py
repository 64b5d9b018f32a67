"""The processes of a run."""

from __future__ import annotations

import unlearn.environment  # noqa: F401 (before DeepSpeed)

# isort: split
import atexit
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Who this process is among how many, and where its tensors live."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on each of them."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


_PATIENCE = timedelta(minutes=10)  # with processes whose imports take longer
_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def start_world(device: str) -> World:
    """Join the processes of this run, or start a world of one.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are as torchrun sets them. With UNLEARN_MEETING
    the store at that port is there already, and this prefix of its keys is the run's.
    """
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
    # The shared-memory collectives would be compiled for minutes on first use; gloo serves.
    if device == "cpu" and hasattr(deepspeed.ops, "__compatible_ops__"):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Whatever else used Accelerate in this process left it without DeepSpeed.
    AcceleratorState._reset_state(reset_partial_state=True)
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
    AcceleratorState._reset_state(reset_partial_state=True)
    # A world of one stays for the next run: DeepSpeed keeps handles to its group.
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
