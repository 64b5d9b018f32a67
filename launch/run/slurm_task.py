"""Determine which task of a Slurm step this process is.

`srun --nodes=2 --ntasks-per-node=1 unlearn … hardware.nodes=2` starts the command once on every node. Task 0
leads, the others follow.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from unlearn.errors import UserError

_PLAIN = re.compile(r"(?:[\w.-]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+")  # a host, or hosts with ranges


@dataclass(frozen=True)
class Task:
    """One task of a step: its number, the number of tasks, its number on the node, and the first node.

    Outside of a step there is one task.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    leader: str = "127.0.0.1"
    step: str = ""

    @property
    def leads(self) -> bool:
        return self.number == 0

    @property
    def name(self) -> str:
        return f"task {self.number} on {node()}"

    def process_variables(self, processes: int, devices: int | None = None) -> list[dict[str, str]]:
        """Return RANK, LOCAL_RANK and WORLD_SIZE of the processes of this task, and how many these are.

        `devices`: how many GPUs the task sees. If it sees only its own, local ranks begin at 0.

        Raises:
            UserError: the processes cannot be divided evenly among the tasks.
        """
        if processes % self.count:
            raise UserError(
                f"hardware.processes={processes} cannot be shared by the {self.count} tasks of this Slurm "
                f"step: choose a multiple of {self.count}, or start fewer tasks (srun --ntasks). For "
                "separate runs, one per task, unset SLURM_STEP_NUM_TASKS before the command"
            )
        share = processes // self.count
        first = self.local * share
        if devices is not None and devices < first + share:
            first = 0
        return [
            {
                "RANK": str(self.number * share + each),
                "LOCAL_RANK": str(first + each),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(share),
            }
            for each in range(share)
        ]


def this_task(environment: Mapping[str, str] | None = None) -> Task:
    """Return the task of this process; outside of a step, as in a batch script, there is one task."""
    variables = os.environ if environment is None else environment
    count = int(variables.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1 or "SLURM_PROCID" not in variables:
        return Task()
    hosts = expand(variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST", ""))
    return Task(
        number=int(variables["SLURM_PROCID"]),
        count=count,
        local=int(variables.get("SLURM_LOCALID", "0")),
        leader=hosts[0] if len(hosts) > 1 else "127.0.0.1",
        step=f"{variables.get('SLURM_JOB_ID', '')}.{variables.get('SLURM_STEP_ID', '')}",
    )


def leads() -> bool:
    """Return whether this process writes and prints: the first task of a step, or outside of a step."""
    return os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1" or os.environ.get("SLURM_PROCID", "0") == "0"


def node() -> str:
    """Return the name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def expand(nodelist: str) -> list[str]:
    """Return the hosts of a Slurm node list: `a[1-2,07],b` is a1, a2, a07, b; scontrol expands other forms.

    Raises:
        UserError: the list is of another form, and scontrol cannot expand it.
    """
    words = re.findall(rf"{_PLAIN.pattern}(?=,|$)", nodelist)
    if ",".join(words) == nodelist and words:
        return [host for word in words for host in _hosts(word)]
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True)
    except OSError:
        shown = None
    if shown is None or shown.returncode or not shown.stdout.split():
        raise UserError(f"SLURM_STEP_NODELIST={nodelist}: not a list of nodes, and scontrol does not read it")
    return shown.stdout.split()


def _hosts(word: str) -> list[str]:
    hosts = [""]
    for text, ranges in re.findall(r"([^\[\]]*)(?:\[([^\]]*)\])?", word):
        hosts = [host + text + number for host in hosts for number in _numbers(ranges)]
    return hosts


def _numbers(ranges: str) -> list[str]:
    if not ranges:
        return [""]
    numbers = []
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return numbers
