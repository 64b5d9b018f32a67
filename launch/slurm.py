"""Runs as jobs of Slurm: what is asked for, the script that is submitted, how a job that must stop goes on.

submitit writes the script and waits for the results. In the job it has a handler of SIGUSR2, which puts the
job back into the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from unlearn.config import HardwareConfig, RunConfig, SlurmConfig
from unlearn.errors import ConfigError, UserError
from unlearn.signals import STOPPING

LAUNCHER = "slurm"
"""The name of `configs/hydra/launcher/slurm.yaml`."""

_MAX_ARRAY = 1001  # MaxArraySize where slurm.conf does not set it
_MANY = 50  # jobs from which on it takes seconds to compose them
_ANSWER = 30.0  # seconds that one waits for the controller
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_ELSEWHERE = {
    "time": "minutes", "mem": "memory_gb", "partition": "partition", "account": "account", "qos": "qos",
    "constraint": "constraint", "comment": "comment", "job-name": "name", "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node", "ntasks-per-node": "tasks_per_node", "signal": "warning_s",
}  # fmt: skip
_SET = {
    **{option: f"set hardware.slurm.{key} instead" for option, key in _ELSEWHERE.items()},
    "nodes": "set hardware.nodes instead",
    "array": "the array is the sweep's; hardware.slurm.concurrency limits it",
    **dict.fromkeys(
        ("output", "error", "open-mode", "requeue", "wrap", "chdir"), "the launcher sets this itself"
    ),
}
"""Options of sbatch that have a key or a value of their own."""

# From 22.05 on, srun does not take this from the job it runs in.
_CPUS = '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'


def chosen(composed: DictConfig) -> bool:
    """Whether a configuration with Hydra's part is to be launched by Slurm."""
    return composed.hydra.runtime.choices.get("hydra/launcher") == LAUNCHER


def refuse(composed: DictConfig, config: RunConfig, *, sweep: bool) -> None:
    """Raises UserError: nothing could be submitted from here, or Hydra would not do so."""
    if not sweep:
        raise UserError("hydra/launcher=slurm: only a sweep is submitted; add -m, for a single run too")
    if problems := check(config.hardware.slurm):
        raise ConfigError(problems)
    if not composed.get("dry_run") and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "hydra/launcher=slurm: there is no sbatch or srun on PATH; start the command where jobs are "
            "submitted, or look at the script with dry_run=true"
        )


def check(slurm: SlurmConfig) -> list[str]:
    """What of `hardware.slurm` cannot be asked for."""
    problems = []
    if slurm.warning_s >= 60 * slurm.minutes:
        problems.append(
            f"hardware.slurm.warning_s={slurm.warning_s}: a run is warned before its time limit, which is "
            f"hardware.slurm.minutes={slurm.minutes}, {60 * slurm.minutes} s: choose fewer seconds or more "
            "minutes"
        )
    for option, value in slurm.additional.items():
        key, name = f"hardware.slurm.additional.{option}", str(option).replace("_", "-")
        if name in _SET:
            problems.append(f"{key}={value}: {_SET[name]}")
        elif not _OPTION.fullmatch(name):
            problems.append(f"{key}={value}: give an option of sbatch without its dashes, such as mail-type")
        elif not isinstance(value, str | int | float) or "\n" in str(value):
            problems.append(
                f"{key}={value!r}: give one text or number, or true for an option without a value"
            )
    texts = {
        name: getattr(slurm, name)
        for name in ("name", "partition", "account", "qos", "constraint", "comment")
    }
    problems += [
        f"hardware.slurm.{name}={text!r}: it must be one line"
        for name, text in texts.items()
        if text is not None and not text.isprintable()
    ]
    return problems


def ask(composed: DictConfig, jobs: int) -> None:
    """Let sbatch look at the script before a sweep is composed, which takes minutes for thousands of jobs.

    A few are submitted as fast.

    Raises:
        UserError: it would not take it. (What it only cannot start at once is submitted all the same.)
    """
    if jobs < _MANY:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
        file.write(script(composed, min(jobs, array_limit())))
        file.flush()
        said = _said(["sbatch", "--test-only", file.name])
    if (
        said is not None
        and said.returncode
        and re.search("invalid|unrecogni|violates", said.stderr, re.IGNORECASE)
    ):
        raise _not_taken(said.stderr.replace(file.name, "the script"))


def _not_taken(said: str) -> UserError:
    """What sbatch says of a job that it refuses, with what can be done."""
    reason = " ".join(said.split())
    fewer = "; sweep over fewer values at a time" if "array" in reason else ""
    return UserError(
        f"hydra/launcher=slurm: Slurm does not take the job: {reason}{fewer}. hardware.slurm.* says what "
        "is asked for; dry_run=true shows the script"
    )


@cache
def array_limit() -> int:
    """How many elements an array may have in this cluster; Slurm's own default where it does not say."""
    said = _said(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", said.stdout, re.MULTILINE) if said else None
    return max(1, int(found[1])) if found else _MAX_ARRAY


def _said(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """What a command of Slurm prints; None where there is none, or no answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None


def script(composed: DictConfig, jobs: int) -> str:
    """What sbatch is given for so many runs, by submitit itself; nothing is submitted.

    `composed` holds Hydra's part too, with `hydra/launcher=slurm`.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Draft(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # it need not be a machine of the cluster

    given = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(given, dict)
    values = {str(key): value for key, value in given.items() if value is not None and key != "_target_"}
    draft = Draft(values.pop("submitit_folder"), max_num_timeout=values.pop("max_num_timeout"))
    draft.update_parameters(**draft._convert_parameters(values))
    if jobs > 1:
        draft.parameters["map_count"] = jobs
    return draft._make_submission_file_text(draft._submitit_command_str, "")


@contextmanager
def together() -> Iterator[None]:
    """While a launcher waits for its jobs, let one that left no result wait for the others to end as well.

    What became of it is then in Hydra's return of that job, in place of an error that hides the rest. More
    jobs than an array may have are submitted as several arrays.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.slurm import slurm

    told: set[str] = set()

    class Patient(slurm.SlurmJob[Any]):
        def __init__(self, folder: Path | str, job_id: str, tasks: Sequence[int] = (0,)) -> None:
            super().__init__(folder, job_id, tasks)
            number = job_id.split("_")[0]
            if number not in told:
                told.add(number)
                sys.stderr.write(
                    f"Slurm job {number} is submitted: squeue --job {number} shows it, scancel {number} ends "
                    f"it, what it prints is in {self.paths.folder.parent}\n"
                )

        def results(self) -> list[Any]:
            try:
                return super().results()
            except UncompletedJobError:
                reason = f"Slurm job {self.job_id} ({self.state}) left no result; see {self.paths.stdout}"
                return [JobReturn([self.job_id], status=JobStatus.FAILED, _return_value=UserError(reason))]

    before, submit = slurm.SlurmJob, slurm.SlurmExecutor._internal_process_submissions

    def by_arrays(executor: Any, submissions: list[Any]) -> list[Any]:
        most = array_limit()
        parts = [submissions[first : first + most] for first in range(0, len(submissions), most)]
        try:
            return [job for part in parts for job in submit(executor, part)]
        except FailedJobError as error:
            raise _not_taken(str(error)) from error

    slurm.SlurmJob = slurm.SlurmExecutor.job_class = Patient  # type: ignore[misc]
    slurm.SlurmExecutor._internal_process_submissions = by_arrays  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        slurm.SlurmJob = slurm.SlurmExecutor.job_class = before  # type: ignore[misc]
        slurm.SlurmExecutor._internal_process_submissions = submit  # type: ignore[method-assign]


def give_back() -> None:
    """Of a run that a signal has stopped: let its job be continued, if it is one of an array.

    Returns outside of a job. In one it does not: what the run has reached is in its folder, and no result may
    be left, for it would end the job. Time limit and preemption leave it running for a while, and it is put
    back into the queue from here; otherwise Slurm has decided already whether it comes again.

    Raises:
        UserError: its time ran out too often.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    if os.environ.get("SLURM_PROCID", "0") != "0":
        sys.exit(0)  # another code would end the first task, which is about to do this
    requeue: Any = signal.getsignal(signal.SIGUSR2)
    for number in STOPPING:  # Slurm sends them to all below the job, and they would end what is asked of it
        signal.signal(number, signal.SIG_IGN)
    if (state := _state()) == "RUNNING":
        try:
            requeue(signal.SIGUSR2, None)
        except Exception as error:
            raise UserError(
                "the job ran out of time more often than hardware.slurm.requeues allows; the same command "
                "continues the run"
            ) from error
    sys.stderr.write(f"this job is {state}: Slurm decides whether it comes again\n")
    sys.exit(1)


def _state() -> str:
    given = os.environ
    array, element = given.get("SLURM_ARRAY_JOB_ID"), given.get("SLURM_ARRAY_TASK_ID")
    # The number of the array is that of one of its jobs as well.
    job = f"{array}_{element}" if array else given["SLURM_JOB_ID"]
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True)
    fields = dict(field.split("=", 1) for field in shown.stdout.split() if "=" in field)
    return fields.get("JobState", "RUNNING")


def _setting(key: str, *, _root_: Any) -> Any:
    """`${unlearn_slurm:key}` of the launcher: a key of hardware.slurm, or what follows from the hardware."""
    hardware = HardwareConfig.model_validate(OmegaConf.to_container(_root_.hardware, resolve=True))
    slurm = hardware.slurm
    if key == "nodes":
        return hardware.nodes
    if key == "gpus_per_node" and slurm.gpus_per_node is None:
        return hardware.processes // hardware.nodes if hardware.device == "cuda" else None
    if key == "setup":
        return [_CPUS, *slurm.setup]
    return getattr(slurm, key)


OmegaConf.register_new_resolver("unlearn_slurm", _setting, replace=True)
