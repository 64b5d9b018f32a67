"""Runs as Slurm jobs: check settings, show the script, requeue a job that must stop.

submitit writes the script and waits for the results. In the job, its handler of SIGUSR2 requeues the job.
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
_MANY = 50  # jobs; composing more takes seconds
_ANSWER = 30.0  # seconds to wait for the controller
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
"""Options of sbatch that another key sets, or the launcher itself."""

_SAFE_PATH = "export PYTHONSAFEPATH=1"  # else a job takes files of its folder for packages of the same name
# Since 22.05 srun does not inherit this from its job.
_CPUS = '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'


def chosen(composed: DictConfig) -> bool:
    """Whether a configuration, which includes Hydra's, chooses Slurm as launcher."""
    return composed.hydra.runtime.choices.get("hydra/launcher") == LAUNCHER


def refuse(composed: DictConfig, config: RunConfig, *, sweep: bool) -> None:
    """Check that a sweep can be submitted from this machine; warn where it asks for no cores.

    Raises:
        UserError: it is not a sweep, Slurm's commands are missing, or settings are wrong.
    """
    if not sweep:
        raise UserError("hydra/launcher=slurm: only a sweep is submitted; add -m, also for a single run")
    if problems := check(config.hardware.slurm):
        raise ConfigError(problems)
    hardware = config.hardware
    shared = hardware.processes // hardware.nodes // hardware.slurm.tasks_per_node
    more = {str(option).replace("_", "-") for option in hardware.slurm.additional}
    if hardware.slurm.cpus_per_task is None and "cpus-per-gpu" not in more and shared > 1:
        sys.stderr.write(
            f"hardware={hardware.name} asks for no cores, so that {shared} processes share one; choose a "
            "hardware whose name begins with slurm-, or set hardware.slurm.cpus_per_task\n"
        )
    if not composed.get("dry_run") and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "hydra/launcher=slurm: there is no sbatch or srun on PATH; start the command where jobs are "
            "submitted, or show the script with dry_run=true"
        )


def check(slurm: SlurmConfig) -> list[str]:
    """Return the problems of `hardware.slurm`."""
    problems = []
    if slurm.warning_s >= 60 * slurm.minutes:
        problems.append(
            f"hardware.slurm.warning_s={slurm.warning_s}: the warning must come before the time limit "
            f"hardware.slurm.minutes={slurm.minutes}, {60 * slurm.minutes} s: choose fewer seconds or more "
            "minutes"
        )
    for option, value in slurm.additional.items():
        key, name = f"hardware.slurm.additional.{option}", str(option).replace("_", "-")
        if name in _SET:
            problems.append(f"{key}={value}: {_SET[name]}")
        elif not _OPTION.fullmatch(name):
            problems.append(f"{key}={value}: name an option of sbatch without its dashes, such as mail-type")
        elif not isinstance(value, str | int | float) or "\n" in str(value):
            problems.append(f"{key}={value!r}: set one text or number, or true for an option without a value")
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


def check_submission(composed: DictConfig, jobs: int) -> None:
    """Let sbatch check the script before a sweep is composed, which takes minutes for thousands of jobs.

    A sweep of a few jobs is not checked, as submitting it is as fast.

    Raises:
        UserError: sbatch would refuse the script. (A script that it only cannot start now is submitted.)
    """
    if jobs < _MANY:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
        file.write(script(composed, min(jobs, array_limit())))
        file.flush()
        test = _output_of(["sbatch", "--test-only", file.name])
    if (
        test is not None
        and test.returncode
        and re.search("invalid|unrecogni|violates", test.stderr, re.IGNORECASE)
    ):
        raise _refused(test.stderr.replace(file.name, "the script"))


def _refused(message: str) -> UserError:
    """Make the error for a job that sbatch refuses, with the fix."""
    reason = " ".join(message.split())
    fewer = "; sweep over fewer values at a time" if "array" in reason else ""
    return UserError(
        f"hydra/launcher=slurm: Slurm refuses the job: {reason}{fewer}. hardware.slurm.* sets what is "
        "requested; dry_run=true shows the script"
    )


@cache
def array_limit() -> int:
    """Return the cluster's largest array size, or Slurm's default where it is not known."""
    config = _output_of(["scontrol", "show", "config"])
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", config.stdout, re.MULTILINE) if config else None
    return max(1, int(match[1])) if match else _MAX_ARRAY


def _output_of(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command of Slurm; None where it does not exist or does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None


def script(composed: DictConfig, jobs: int) -> str:
    """Return the script that submitit would submit for so many runs; nothing is submitted.

    `composed` includes Hydra's configuration, with `hydra/launcher=slurm`.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Draft(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # this machine need not belong to the cluster

    settings = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(settings, dict)
    values = {str(key): value for key, value in settings.items() if value is not None and key != "_target_"}
    draft = Draft(values.pop("submitit_folder"), max_num_timeout=values.pop("max_num_timeout"))
    draft.update_parameters(**draft._convert_parameters(values))
    if jobs > 1:
        draft.parameters["map_count"] = jobs
    return draft._make_submission_file_text(draft._submitit_command_str, "")


@contextmanager
def together() -> Iterator[None]:
    """Let a launcher wait for all its jobs, even if one of them leaves no result.

    Hydra's return of that job then holds the failure, instead of an error that hides the other jobs. More
    jobs than an array can have are submitted as several arrays.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.slurm import slurm

    announced: set[str] = set()

    class PatientJob(slurm.SlurmJob[Any]):
        def __init__(self, folder: Path | str, job_id: str, tasks: Sequence[int] = (0,)) -> None:
            super().__init__(folder, job_id, tasks)
            number = job_id.split("_")[0]
            if number not in announced:
                announced.add(number)
                sys.stderr.write(
                    f"Slurm job {number} is submitted: squeue --job {number} shows it, scancel {number} ends "
                    f"it, its output is in {self.paths.folder.parent}\n"
                )

        def results(self) -> list[Any]:
            try:
                return super().results()
            except UncompletedJobError:
                reason = f"Slurm job {self.job_id} ({self.state}) left no result; see {self.paths.stdout}"
                return [JobReturn([self.job_id], status=JobStatus.FAILED, _return_value=UserError(reason))]

    before, submit = slurm.SlurmJob, slurm.SlurmExecutor._internal_process_submissions

    def by_arrays(executor: Any, submissions: list[Any]) -> list[Any]:
        limit = array_limit()
        parts = [submissions[first : first + limit] for first in range(0, len(submissions), limit)]
        try:
            return [job for part in parts for job in submit(executor, part)]
        except FailedJobError as error:
            raise _refused(str(error)) from error

    slurm.SlurmJob = slurm.SlurmExecutor.job_class = PatientJob  # type: ignore[misc]
    slurm.SlurmExecutor._internal_process_submissions = by_arrays  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        slurm.SlurmJob = slurm.SlurmExecutor.job_class = before  # type: ignore[misc]
        slurm.SlurmExecutor._internal_process_submissions = submit  # type: ignore[method-assign]


def requeue() -> None:
    """Requeue the job of a run that a signal has stopped; outside of a job, return.

    In a job this does not return: the run's checkpoints are in its folder, and a result would end the job.
    After a time limit or preemption the job runs for a while, and is requeued here. Otherwise Slurm has
    already decided whether it runs again.

    Raises:
        UserError: the job's time ran out too often.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    if os.environ.get("SLURM_PROCID", "0") != "0":
        sys.exit(0)  # another code would end the first task, which is about to do this
    handler: Any = signal.getsignal(signal.SIGUSR2)
    for number in STOPPING:  # Slurm sends them to all processes of the job, and they would end scontrol
        signal.signal(number, signal.SIG_IGN)
    if (state := _state()) == "RUNNING":
        try:
            handler(signal.SIGUSR2, None)
        except Exception as error:
            raise UserError(
                "the job ran out of time more often than hardware.slurm.requeues allows; the same command "
                "continues the run"
            ) from error
    sys.stderr.write(f"this job is {state}: Slurm decides whether it runs again\n")
    sys.exit(1)


def _state() -> str:
    variables = os.environ
    array, element = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
    # The array's number is also that of one of its jobs.
    job = f"{array}_{element}" if array else variables["SLURM_JOB_ID"]
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True)
    fields = dict(field.split("=", 1) for field in shown.stdout.split() if "=" in field)
    return fields.get("JobState", "RUNNING")


def _setting(key: str, *, _root_: Any) -> Any:
    """Resolve `${unlearn_slurm:key}` of the launcher: a key of hardware.slurm, or derived from hardware."""
    hardware = HardwareConfig.model_validate(OmegaConf.to_container(_root_.hardware, resolve=True))
    slurm = hardware.slurm
    if key == "nodes":
        return hardware.nodes
    if key == "gpus_per_node" and slurm.gpus_per_node is None:
        return hardware.processes // hardware.nodes if hardware.device == "cuda" else None
    if key == "setup":
        return [_CPUS, _SAFE_PATH, *slurm.setup]
    return getattr(slurm, key)


OmegaConf.register_new_resolver("unlearn_slurm", _setting, replace=True)
