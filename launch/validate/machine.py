"""Check `hardware` against the method and against this machine."""

from __future__ import annotations

import os
from importlib.machinery import PathFinder

from launch.run.slurm_task import node as this_node
from launch.run.slurm_task import this_task
from unlearn.config import HardwareConfig, RunConfig
from unlearn.errors import UserError


def hardware_problems(config: RunConfig) -> list[str]:
    """Return why the hardware cannot run the configuration; a dry run may be of another machine."""
    hardware, method = config.hardware, config.method
    problems = []
    if hardware.micro_batch is not None:
        together = hardware.micro_batch * hardware.processes
        if method.sets and method.batch % together:
            problems.append(
                f"method.batch={method.batch} cannot be divided into hardware.processes="
                f"{hardware.processes} × hardware.micro_batch={hardware.micro_batch}: choose a divisor, or "
                "leave micro_batch out (hardware.micro_tokens then sets the size of micro-batches)"
            )
    elif method.sets and method.batch < hardware.processes:
        problems.append(
            f"method.batch={method.batch} is smaller than hardware.processes={hardware.processes}: "
            "some processes would be idle"
        )
    if hardware.offload and hardware.zero < 2:
        problems.append(f"hardware.offload=True needs hardware.zero=2 or 3, not {hardware.zero}")
    if hardware.gradients == "bf16" and hardware.dtype != "bf16":
        problems.append(f"hardware.gradients=bf16 needs hardware.dtype=bf16, not {hardware.dtype}")
    if hardware.processes % hardware.nodes:
        problems.append(
            f"hardware.processes={hardware.processes} is the number on all nodes: it must be a multiple of "
            f"hardware.nodes={hardware.nodes}"
        )
    return problems if config.dry_run or problems else _machine(hardware)


def _machine(hardware: HardwareConfig) -> list[str]:
    """Check the hardware against this machine, its GPUs and the tasks of the Slurm step, if any."""
    problems = []
    if hardware.optimizer == "adamw-8bit" and PathFinder.find_spec("torchao") is None:
        problems.append("hardware.optimizer=adamw-8bit needs torchao: pip install 'unlearn-lab[memory]'")
    share = 0
    try:
        share = _share(hardware)
    except UserError as error:
        problems.append(str(error))
    if hardware.device == "cpu" and hardware.dtype == "bf16":
        from unlearn.passes.product_times import bf16_gain  # imports torch

        if (gain := bf16_gain()) < 1:
            problems.append(
                f"hardware.dtype=bf16: this processor emulates bf16, {gain:.2f} times as fast as fp32: "
                "hardware=cpu is faster"
            )
    if hardware.device == "cuda":
        problems += _gpus(hardware, share)
    return problems


def _share(hardware: HardwareConfig) -> int:
    """Return the number of processes on this node.

    Raises:
        UserError: the processes cannot be divided among the tasks of the Slurm step.
    """
    task = this_task()
    if task.count % hardware.nodes:
        here = "this is not a Slurm step" if task.count == 1 else f"this Slurm step has {task.count} tasks"
        raise UserError(
            f"hardware.nodes={hardware.nodes}: the command must be started on every node, but {here}; inside "
            f"a job: srun --nodes={hardware.nodes} --ntasks-per-node=1 unlearn …"
        )
    return len(task.process_variables(hardware.processes))


def _gpus(hardware: HardwareConfig, share: int) -> list[str]:
    """Check that there are GPUs for this node's share of the processes."""
    import torch

    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible} limits which it sees)"
        return [f"hardware.device=cuda: torch sees no GPU here{hidden}; hardware=cpu runs without one"]
    if share <= (count := torch.cuda.device_count()):
        return []
    tasks = this_task().count
    each = f" of {tasks} tasks with {share} processes each" if tasks > 1 else ""
    return [f"hardware.processes={hardware.processes}: {this_node()}{each} has {count} GPUs"]
