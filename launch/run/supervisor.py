"""Supervise the processes of a run, in one command or in the tasks of a Slurm step."""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from launch.run.log_warnings import last_error
from launch.run.plan import Planned
from launch.run.rendezvous import RENDEZVOUS_TIMEOUT, TaskLost, Team
from launch.run.slurm_task import node as this_node
from launch.run.worker_processes import Report, Workers, log_of
from unlearn.errors import UserError
from unlearn.guard import REFUSED
from unlearn.passes.out_of_memory import warning
from unlearn.signals import StartAgain, Stopped, on_stop

log = logging.getLogger(__name__)

_VISIBLE_TIMEOUT = 150.0  # seconds until a file of one node must be visible on the others
_LAG = 10.0  # seconds until a portion that another node wrote is visible, at most


class RunFailed(UserError):
    """A process of the run failed; finished work stays in the run directory."""


def gather(run: Planned, team: Team) -> None:
    """Wait until all tasks of the step have begun this run.

    Raises:
        TaskLost: a task did not begin in time.
        UserError: a task began another run.
    """
    for task in team.others:
        late = (
            f"{run.role}: task {task} of the Slurm step did not begin this run within "
            f"{RENDEZVOUS_TIMEOUT:.0f} s; its output says why"
        )
        if (other := team.wait(f"ready/{task}", RENDEZVOUS_TIMEOUT, late))["run"] != _identity(run):
            raise UserError(
                f"the tasks of this Slurm step were given different runs: {' '.join(_identity(run))} here, "
                f"{' '.join(other['run'])} on {other['node']}. For separate runs, one per task, unset "
                "SLURM_STEP_NUM_TASKS before the command"
            )


def work_together(run: Planned, team: Team, kept_open: tuple[int, ...] = ()) -> dict[int, Report]:
    """Start the workers of the first task, wait for the workers of all tasks, and return reports by task.

    `kept_open`: file descriptors that the workers inherit. If a worker fails, all others are terminated.
    """
    reports: dict[int, Report] = {}
    ended = False
    with _workers(run, team) as workers, on_stop(workers.forward):
        if team.others:
            team.set("begun", {"config": file_digest(run.rundir.config), **team.rendezvous})
        workers.start(team.rendezvous, kept_open)
        while workers.poll() or len(reports) < len(team.others):
            reports |= _new_reports(team, reports)
            if not ended and (workers.broken or any(report.broken for report in reports.values())):
                ended = True
                if team.others:
                    team.set("end")
                workers.end()
            time.sleep(0.05)
        return {0: workers.report(), **reports}


def _new_reports(team: Team, known: Mapping[int, Report]) -> dict[int, Report]:
    """Return the reports of tasks that have ended or been lost since the last call."""
    reports = {}
    for task in (task for task in team.others if task not in known):
        if sent := team.get(f"report/{task}"):
            reports[task] = Report(**{**sent, "failed": {int(k): v for k, v in sent["failed"].items()}})
        elif team.is_lost(task):
            node = team.get(f"ready/{task}")["node"]
            reports[task] = Report(node, broken=True, error=f"task {task} on {node} no longer answers")
    return reports


def judge(run: Planned, reports: Iterable[Report], restarts: int = 0) -> None:
    """Raise the failure of the workers; of several, the most likely first one.

    restarts: how often the run had begun again with smaller portions when the workers were started.

    Raises:
        Stopped: a signal stopped them.
        StartAgain: a worker was out of memory; there is a smaller portion for the next ones.
        RunFailed: a worker failed.
    """
    if any(report.stopped for report in reports):
        raise Stopped(f"{run.directory}: stopped by a signal; start it again to continue")
    if any(report.broken for report in reports) and (fitting := _smaller(run, restarts)):
        raise StartAgain(warning(fitting))
    again = "Started again, the run continues from its last checkpoint"
    failed = [(code, rank, report.node) for report in reports for rank, code in report.failed.items()]
    killed = min((each for each in failed if each[0] < 0), default=None)
    for report in reports:
        if report.error is not None and killed is None:
            raise RunFailed(f"{run.role}: {report.error}. {again}")
    if failed:
        code, rank, node = killed or min(failed, key=lambda each: each[1])
        by = f" ({signal.Signals(-code).name})" if code < 0 else ""
        count = run.job.config.hardware.processes
        if (why := last_error(log_of(run.directory, rank)) if code > 0 else "") and code == REFUSED:
            raise RunFailed(why)
        what = f"{run.role}: {why}: " if why else f"{run.role}: "
        raise RunFailed(
            f"{what}process {rank} of {count} on {node} ended with code {code}{by}; see "
            f"{log_of(run.directory, rank)} and the other logs there. {again}"
        )


def _smaller(run: Planned, restarts: int) -> dict[str, int]:
    """Return the portions that a worker wrote when it was out of memory; {} where none did."""
    hardware = run.job.config.hardware
    ends = time.monotonic() + (_LAG if hardware.nodes > 1 else 0.0)
    while True:
        fitting, now = run.rundir.read_memory(hardware)
        if now > restarts:
            return fitting
        if time.monotonic() >= ends:
            return {}
        time.sleep(0.5)


def follow(run: Planned, team: Team) -> dict[str, float | None]:
    """Take part in a run as another task than the first, and return its results.

    Raises:
        Stopped: a signal stopped the run.
        RunFailed: the run failed.
        TaskLost: the first task has ended.
    """
    number = team.task.number
    with _workers(run, team) as workers, on_stop(workers.forward):
        team.set(f"ready/{number}", {"run": _identity(run), "node": this_node()})
        try:
            report = _share_work(run, team, workers)
        except Stopped:
            report = workers.report()
        except TaskLost:
            raise
        except (UserError, OSError) as error:
            report = workers.report(f"{team.task.name}: {error}")
        team.set(f"report/{number}", asdict(report))
        outcome = team.wait("outcome")
        if "results" in outcome:
            _wait_for_file(team, run.rundir.results, outcome["results"])
        team.set(f"known/{number}")
    if "results" in outcome:
        return run.rundir.read_results()
    ended = StartAgain if outcome["again"] else Stopped if outcome["stopped"] else RunFailed
    raise ended(f"{team.task.name} ended: {outcome['error']}")


def _share_work(run: Planned, team: Team, workers: Workers) -> Report:
    """Run this task's workers, unless the first task sets the outcome because the run is complete."""
    while (begun := team.get("begun")) is None:
        if team.get("outcome") is not None:
            return workers.report()
        time.sleep(0.1)
    _wait_for_file(team, run.rundir.config, begun.pop("config"))
    workers.start(begun)
    while workers.poll():
        if team.get("end") or team.get("outcome"):
            workers.end()
        time.sleep(0.1)
    return workers.report()


def _workers(run: Planned, team: Team) -> Workers:
    hardware = run.job.config.hardware
    devices = torch.cuda.device_count() if hardware.device == "cuda" else None
    return Workers(run.directory, team.task.process_variables(hardware.processes, devices), this_node())


def publish_outcome(team: Team, outcome: Mapping[str, Any]) -> None:
    """Set the outcome of the run, and wait until all tasks except lost ones have read it."""
    try:
        team.set("outcome", outcome)
        for task in team.others:
            while not team.get(f"known/{task}") and not team.is_lost(task):
                time.sleep(0.05)
    except TaskLost as error:
        log.warning("%s", error)


def _wait_for_file(team: Team, file: Path, digest: str) -> None:
    """Wait until a file has the content that the first task wrote; network file systems have delays."""
    deadline = time.monotonic() + _VISIBLE_TIMEOUT
    while file_digest(file) != digest:
        if time.monotonic() > deadline:
            raise UserError(
                f"{team.task.name} does not see {file} as task 0 wrote it: its folder must be "
                "on a file system that all nodes share"
            )
        team.beat()
        time.sleep(0.1)


def file_digest(file: Path) -> str:
    """Return the hash of a file, "" if it does not exist."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _identity(run: Planned) -> list[str]:
    return [run.role, run.job.fingerprint]
