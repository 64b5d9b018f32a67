"""Make one planned run under its lock, in its directory, with its processes."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from filelock import FileLock, Timeout

from launch.run.complete import is_complete, with_own_evaluation
from launch.run.config_file import read_stored, trained_with, write_config
from launch.run.plan import Planned
from launch.run.rendezvous import Team, team_of
from launch.run.slurm_task import this_task
from launch.run.supervisor import file_digest, follow, gather, judge, publish_outcome, work_together
from launch.run.worker_processes import after_killed_workers
from launch.tracking.run_tracker import send_late
from unlearn.config import PRECISION
from unlearn.garbage import free_memory
from unlearn.signals import StartAgain, Stopped, on_stop

log = logging.getLogger(__name__)


def ensure(
    run: Planned, *, command: Sequence[str] | None = None, progress: bool = True, inside: bool = True
) -> dict[str, float | None]:
    """Make or continue a run unless it is complete, and return its results. `command` as in `write_config`.

    `inside`: whether a run of one process is made in this one. A process that used CUDA keeps its GPU and
    some of its memory, so a pool, whose processes make one run after the other, has each made in another.

    One command at a time works on a run; others wait. The lock is the operating system's, so it ends with its
    process. The tasks of a Slurm step share the work: the first task decides, the others follow.

    Raises:
        UserError: the directory belongs to another run, or the run failed.
        Stopped: a signal stopped the run; started again, it continues.
    """
    team = team_of(this_task())
    while True:
        team.begin()
        try:
            if not team.task.leads:
                return follow(run, team)
            return _lead(run, team, command, progress=progress, inside=inside)
        except StartAgain as again:
            log.warning("%s", again)
        free_memory()  # what a run in this process has left


def _lead(
    run: Planned, team: Team, command: Sequence[str] | None, *, progress: bool, inside: bool
) -> dict[str, float | None]:
    if not team.others:
        with _locked(run):
            return _decide(run, team, command, progress=progress, inside=inside)
    try:
        team.beat()  # opens the store: the others look for it now, while the lock may take hours
        with on_stop(_before_workers), _locked(run):
            gather(run, team)
            results = _decide(run, team, command, progress=progress, inside=inside)
    except BaseException as error:
        publish_outcome(
            team,
            {
                "stopped": isinstance(error, Stopped | KeyboardInterrupt),
                "again": isinstance(error, StartAgain),
                "error": str(error) or type(error).__name__,
            },
        )
        raise
    publish_outcome(team, {"results": file_digest(run.rundir.results)})
    return results


def _before_workers(number: int) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name} before it began")


def _decide(
    run: Planned, team: Team, command: Sequence[str] | None, *, progress: bool, inside: bool
) -> dict[str, float | None]:
    other = _other_precision(run) if run.rundir.config.is_file() else ""
    if not is_complete(run):
        run = with_own_evaluation(run)
        if other and run.rundir.model.is_dir():
            log.warning("%s was trained with %s, and is evaluated with this command's", run.directory, other)
        elif other and run.rundir.checkpoint_steps():
            log.warning("%s was begun with %s, and goes on with this command's", run.directory, other)
        # Slurm ends all processes of a step with it, and its tasks have workers of their own.
        with nullcontext(()) if team.others else after_killed_workers(run.directory) as kept_open:
            write_config(run, command)
            if inside and run.job.config.hardware.processes == 1 and not team.others:
                from launch.run.worker import work  # imports DeepSpeed, which a complete run does not need

                work(run.directory, progress=progress)
            else:
                _, restarts = run.rundir.read_memory(run.job.config.hardware)
                judge(run, work_together(run, team, kept_open).values(), restarts)
    else:
        if other:
            log.warning(
                "%s is complete, and was made with %s: for this command's choose another root",
                run.directory, other,
            )  # fmt: skip
        send_late(run.job, run.role, run.rundir)
    return run.rundir.read_results()


def _other_precision(run: Planned) -> str:
    """Return how a run was trained, as far as this command differs in more than rounding."""
    made, asked = trained_with(read_stored(run.rundir)), run.job.config.hardware
    return " ".join(
        f"hardware.{key}={made[key]}"
        for key in PRECISION
        if made.get(key, getattr(asked, key)) != getattr(asked, key)
    )


@contextmanager
def _locked(run: Planned) -> Iterator[None]:
    lock = FileLock(run.directory / ".lock")
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is being made by another process: waiting", run.directory)
        lock.acquire()
    except OSError:  # a complete run of another user, or on a disk that is read only, is only read
        if not is_complete(run):
            raise
    try:  # `with lock` would acquire the lock a second time, and hold it after a failure
        yield
    finally:
        lock.release()
