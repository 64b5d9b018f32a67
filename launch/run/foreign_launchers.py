"""Drop the variables of other launchers, and refuse to run as one of several copies."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from launch.run.slurm_task import this_task
from unlearn.errors import UserError

_MPI = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_VARIABLES = re.compile(
    r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|NODE_RANK|LOCAL_SIZE|CROSS_(RANK|SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC|OMPI_COMM_WORLD|MV2_COMM_WORLD|PMI|ACCELERATE)_.*"
)
"""Variables of launchers that torch, Accelerate and DeepSpeed read."""


def settle(environment: MutableMapping[str, str] | None = None) -> None:
    """Refuse to run as one of several copies that a launcher started; else drop the variables of launchers.

    A cluster may set such variables for every job. The variables of a Slurm step are not dropped.

    Raises:
        UserError: another launcher started this process as one of several.
    """
    variables = os.environ if environment is None else environment
    if (launcher := _launcher(variables)) is not None:
        name, count = launcher
        raise UserError(
            f"this is one of {count} processes that {name} started, and each would make the same run: the "
            f"command starts its processes itself. Start it once: unlearn hardware.processes={count} … "
            "(over several machines: srun, see docs/slurm.md). If nothing started several, unset WORLD_SIZE "
            "and RANK"
        )
    for name in [name for name in variables if _VARIABLES.fullmatch(name)]:
        del variables[name]


def _launcher(variables: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the launcher that started this command and the number of copies; None without a launcher."""
    size = _number(variables.get("WORLD_SIZE"))
    step = this_task(variables).count
    for name in _MPI:
        if (count := _number(variables.get(name))) > 1:
            return "mpirun", count
    if size > 1 and "TORCHELASTIC_RUN_ID" in variables:
        return "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in variables else "torchrun", size
    if step > 1:  # srun may set PMI's variables, and scripts export WORLD_SIZE for other programs
        return None
    if (count := _number(variables.get("PMI_SIZE"))) > 1:
        return "mpirun", count
    if size > 1 and ("RANK" in variables or "LOCAL_RANK" in variables):
        return "deepspeed" if "CROSS_SIZE" in variables else "another launcher", size
    return None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isdecimal() else 0
