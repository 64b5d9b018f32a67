"""Deal the GPUs that the command sees out to the jobs of a pool, through CUDA_VISIBLE_DEVICES of each job.

A slot of a GPU is a file with a lock of the operating system, which is free again when its job ends or is
killed.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from unlearn.config import HardwareConfig
from unlearn.errors import UserError

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_NONE = ("", "-1", "NoDevFiles")
_ON_CPU = 2  # jobs at a time
_POLL = 0.2  # seconds between two checks for free GPUs


def visible() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them: by number, UUID or MIG."""
    chosen = os.environ.get(_VARIABLE)
    if chosen is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    # CUDA ignores what follows a name that is none.
    return [*takewhile(lambda name: name not in _NONE, map(str.strip, chosen.split(",")))]


def pool_size(hardware: HardwareConfig, gpus: int) -> int:
    """Return how many jobs fill the GPUs; on a CPU, two."""
    if hardware.device != "cuda":
        return _ON_CPU
    return max(1, gpus * hardware.jobs_per_gpu // _per_job(hardware))


def choose(free: Mapping[str, int], needed: int) -> list[str] | None:
    """Return the GPUs with the most free slots, in their order; None if too few have one.

    Args:
        free: number of free slots of each GPU. needed: number of GPUs.
    """
    with_room = [gpu for gpu, slots in free.items() if slots]
    chosen = sorted(with_room, key=lambda gpu: -free[gpu])[:needed]
    return [gpu for gpu in free if gpu in chosen] if len(chosen) == needed else None


@contextmanager
def dealt(hardware: HardwareConfig, folder: Path) -> Iterator[None]:
    """Let this process and those that it starts see only GPUs of their own; wait until enough are free.

    Without a GPU, or on a CPU, nothing is dealt.

    Args:
        folder: where the jobs that share the GPUs lock their slots.

    Raises:
        UserError: a job needs more GPUs than there are.
    """
    before, gpus = os.environ.get(_VARIABLE), visible() if hardware.device == "cuda" else []
    if not gpus:
        yield
        return
    needed = _per_job(hardware)
    if needed > len(gpus):
        raise UserError(
            f"hardware.processes={hardware.processes}: each job needs {needed} GPUs, and {len(gpus)} can be "
            f"dealt here ({_VARIABLE}={'not set' if before is None else before})"
        )
    with _slots(folder / _machine(), gpus, needed, hardware.jobs_per_gpu) as chosen:
        os.environ[_VARIABLE] = ",".join(chosen)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


@contextmanager
def _slots(folder: Path, gpus: Sequence[str], needed: int, per_gpu: int) -> Iterator[list[str]]:
    """Yield GPUs with a slot of each, which is free again afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    waits = False
    while (taken := _take(folder, gpus, needed, per_gpu)) is None:
        if not waits:
            sys.stderr.write("waiting for a free GPU\n")
        waits = True
        time.sleep(_POLL)
    try:
        yield [*taken]
    finally:
        for lock in taken.values():
            lock.release()


def _take(folder: Path, gpus: Sequence[str], needed: int, per_gpu: int) -> dict[str, FileLock] | None:
    """Take a slot of each of `needed` GPUs, or none of them."""
    with FileLock(folder / "dealing.lock"):  # slots that another job only tries would not seem free
        free = {gpu: [*_free_slots(folder, gpu, per_gpu)] for gpu in gpus}
        chosen = choose({gpu: len(slots) for gpu, slots in free.items()}, needed) or []
        taken = {gpu: free[gpu].pop() for gpu in chosen}
        for lock in (lock for slots in free.values() for lock in slots):
            lock.release()
    return taken or None


def _free_slots(folder: Path, gpu: str, per_gpu: int) -> Iterator[FileLock]:
    for slot in range(per_gpu):
        lock = FileLock(folder / f"{quote(gpu, safe='')}-{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        yield lock


def _per_job(hardware: HardwareConfig) -> int:
    return hardware.processes // hardware.nodes


def _machine() -> str:
    """What numbers of GPUs are meant on: a machine, or a Slurm job's part of one."""
    return "-".join([platform.node(), *filter(None, [os.environ.get("SLURM_JOB_ID")])])


def _jobs(*, _root_: Any) -> int:
    """Resolve `${unlearn_jobs:}` of configs/hydra/launcher/joblib.yaml."""
    hardware = HardwareConfig.model_validate(OmegaConf.to_container(_root_.hardware, resolve=True))
    return pool_size(hardware, len(visible()) if hardware.device == "cuda" else 0)


OmegaConf.register_new_resolver("unlearn_jobs", _jobs, replace=True)
