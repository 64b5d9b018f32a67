"""Other programs that start processes: their variables are in the way, and copies of a command too."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from launch.run.slurm_task import this_task
from unlearn.errors import UserError

_MPI = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_OTHERS = re.compile(
    r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|NODE_RANK|LOCAL_SIZE|CROSS_(RANK|SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC|OMPI_COMM_WORLD|MV2_COMM_WORLD|PMI|ACCELERATE)_.*"
)
"""What launchers tell their processes, and torch, Accelerate and DeepSpeed read."""


def settle(environment: MutableMapping[str, str] | None = None) -> None:
    """Refuse to be one of several copies that another launcher has started; else drop what one has left.

    A cluster may set such variables for every job. Tasks of a Slurm step are told by Slurm's own.

    Raises:
        UserError: another launcher started this process as one of several.
    """
    given = os.environ if environment is None else environment
    if (found := _launcher(given)) is not None:
        name, count = found
        raise UserError(
            f"this is one of {count} processes that {name} started, and each would make the same run: the "
            f"command starts its processes itself. Start it once: unlearn hardware.processes={count} … "
            "(over several machines: srun, see docs/slurm.md). If nothing started several, unset WORLD_SIZE "
            "and RANK"
        )
    for name in [name for name in given if _OTHERS.fullmatch(name)]:
        del given[name]


def _launcher(given: Mapping[str, str]) -> tuple[str, int] | None:
    """What has started how many copies of this command."""
    size = _number(given.get("WORLD_SIZE"))
    step = this_task(given).count
    for name in _MPI:
        if (count := _number(given.get(name))) > 1:
            return "mpirun", count
    if size > 1 and "TORCHELASTIC_RUN_ID" in given:
        return "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in given else "torchrun", size
    if step > 1:  # of srun, which may speak PMI, and scripts export WORLD_SIZE for other programs
        return None
    if (count := _number(given.get("PMI_SIZE"))) > 1:
        return "mpirun", count
    if size > 1 and ("RANK" in given or "LOCAL_RANK" in given):
        return "deepspeed" if "CROSS_SIZE" in given else "another launcher", size
    return None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isdecimal() else 0
