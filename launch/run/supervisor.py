"""A run as the work of several processes, and of the tasks of a Slurm step that have a share of them each."""

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
from launch.run.rendezvous import MEETING, TaskLost, Team
from launch.run.slurm_task import node as this_node
from launch.run.worker_processes import Report, Workers, log_of
from unlearn.errors import UserError
from unlearn.files import read_json
from unlearn.guard import REFUSED
from unlearn.signals import Stopped, on_stop

log = logging.getLogger(__name__)

_SEEN = 150.0  # seconds until what one node wrote must be seen by the others


class RunFailed(UserError):
    """A process of the run ended badly; its directory keeps what was done."""


def gather(run: Planned, team: Team) -> None:
    """Wait until all tasks of the step are at this run."""
    for task in team.others:
        late = (
            f"{run.role}: task {task} of the Slurm step did not begin this run within {MEETING:.0f} s; "
            "its output tells why"
        )
        if (other := team.wait(f"ready/{task}", MEETING, late))["run"] != _mark(run):
            raise UserError(
                f"the tasks of this Slurm step were given different runs: {' '.join(_mark(run))} here, "
                f"{' '.join(other['run'])} on {other['node']}. For separate runs, one per task, unset "
                "SLURM_STEP_NUM_TASKS before the command"
            )


def work_together(run: Planned, team: Team) -> dict[int, Report]:
    """Start this task's workers and see that those of all tasks end, well or all together; by task."""
    reports: dict[int, Report] = {}
    told = False
    with _workers(run, team) as workers, on_stop(workers.forward):
        if team.others:
            team.say("begun", {"config": file_digest(run.rundir.config), **team.rendezvous})
        workers.start(team.rendezvous)
        while workers.look() or len(reports) < len(team.others):
            reports |= _heard(team, reports)
            if not told and (workers.broken or any(report.broken for report in reports.values())):
                told = True
                if team.others:
                    team.say("end")
                workers.end()
            time.sleep(0.05)
        return {0: workers.report(), **reports}


def _heard(team: Team, known: Mapping[int, Report]) -> dict[int, Report]:
    """The reports of tasks that have ended or are lost, beside the known ones."""
    found = {}
    for task in (task for task in team.others if task not in known):
        if said := team.heard(f"report/{task}"):
            found[task] = Report(**{**said, "failed": {int(k): v for k, v in said["failed"].items()}})
        elif team.silent(task):
            node = team.heard(f"ready/{task}")["node"]
            found[task] = Report(node, broken=True, error=f"task {task} on {node} no longer answers")
    return found


def judge(run: Planned, reports: Iterable[Report]) -> None:
    """Raise what the workers' ends amount to; of several failures, the one that most likely came first."""
    if any(report.stopped for report in reports):
        raise Stopped(f"{run.directory}: stopped by a signal; start it again to continue")
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


def follow(run: Planned, team: Team) -> dict[str, Any]:
    me = team.task.number
    with _workers(run, team) as workers, on_stop(workers.forward):
        team.say(f"ready/{me}", {"run": _mark(run), "node": this_node()})
        try:
            report = _work_along(run, team, workers)
        except Stopped:
            report = workers.report()
        except TaskLost:
            raise
        except (UserError, OSError) as error:
            report = workers.report(f"{team.task.name}: {error}")
        team.say(f"report/{me}", asdict(report))
        outcome = team.wait("outcome")
        if "results" in outcome:
            _see(team, run.rundir.results, outcome["results"])
        team.say(f"known/{me}")
    if "results" in outcome:
        return read_json(run.rundir.results)
    raise (Stopped if outcome["stopped"] else RunFailed)(f"{team.task.name} ended: {outcome['error']}")


def _work_along(run: Planned, team: Team, workers: Workers) -> Report:
    """Do this task's part of the run, unless the first task finds that there is nothing to do."""
    while (begun := team.heard("begun")) is None:
        if team.heard("outcome") is not None:
            return workers.report()
        time.sleep(0.1)
    _see(team, run.rundir.config, begun.pop("config"))
    workers.start(begun)
    while workers.look():
        if team.heard("end") or team.heard("outcome"):
            workers.end()
        time.sleep(0.1)
    return workers.report()


def _workers(run: Planned, team: Team) -> Workers:
    hardware = run.job.config.hardware
    devices = torch.cuda.device_count() if hardware.device == "cuda" else None
    return Workers(run.directory, team.task.places(hardware.processes, devices), this_node())


def tell(team: Team, outcome: Mapping[str, Any]) -> None:
    """Tell how the run ended, and stay until the tasks that still live know it."""
    try:
        team.say("outcome", outcome)
        for task in team.others:
            while not team.heard(f"known/{task}") and not team.silent(task):
                time.sleep(0.05)
    except TaskLost as error:
        log.warning("%s", error)


def _see(team: Team, file: Path, digest: str) -> None:
    """Wait until a file is here as the first task wrote it: network file systems take their time."""
    until = time.monotonic() + _SEEN
    while file_digest(file) != digest:
        if time.monotonic() > until:
            raise UserError(
                f"{team.task.name} does not see {file} as task 0 wrote it: its folder must be "
                " on a file system that all nodes share"
            )
        team.show_life()
        time.sleep(0.1)


def file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _mark(run: Planned) -> list[str]:
    return [run.role, run.job.fingerprint]
