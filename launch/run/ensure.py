"""Making one planned run happen: its lock, its directory, its processes."""

from __future__ import annotations

import logging
import platform
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch.redact import portable
from launch.run.plan import Planned
from launch.run.rendezvous import Team, team_of
from launch.run.slurm_task import this_task
from launch.run.supervisor import file_digest, follow, gather, judge, tell, work_together
from unlearn.errors import UserError
from unlearn.files import BrokenFile, read_json, replacing
from unlearn.signals import Stopped, on_stop

log = logging.getLogger(__name__)

_PACKAGES = ("unlearn-lab", "torch", "transformers", "accelerate", "deepspeed", "numpy", "wandb")


def is_complete(run: Planned) -> bool:
    """Whether the directory holds the results of this very run, measured in this very way.

    A run that another one needs for its model alone is not to be measured: what was measured of it stands.
    """
    rundir, config = run.rundir, run.job.config
    if not rundir.results.is_file() or not rundir.config.is_file():
        return False
    stored = _stored(rundir.config)
    if stored.fingerprint != run.job.fingerprint:
        return False
    if not config.eval.benchmarks and not config.eval.variants and config.method.makes_model:
        return rundir.model.is_dir() or not config.save_model
    return bool(stored.job.evaluation_key == run.evaluation_key)


def ensure(run: Planned, *, progress: bool = True) -> dict[str, Any]:
    """The results of a run: read if it is complete, continued or made if not.

    Only one command works at a run; others wait for it. The lock is the operating system's, so it dies with
    its holder. The tasks of a Slurm step work at it together: the first one decides, the others follow.

    Raises:
        UserError: the directory belongs to another run, or the run failed.
        Stopped: a signal stopped it; start it again to continue.
    """
    team = team_of(this_task())
    team.begin()
    return _lead(run, team, progress) if team.task.leads else follow(run, team)


def _lead(run: Planned, team: Team, progress: bool) -> dict[str, Any]:
    if not team.others:
        with _alone_with(run):
            return _decide(run, team, progress)
    try:
        with on_stop(_before_workers), _alone_with(run):
            gather(run, team)
            results = _decide(run, team, progress)
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        tell(team, {"stopped": stopped, "error": str(error) or type(error).__name__})
        raise
    tell(team, {"results": file_digest(run.rundir.results)})
    return results


def _before_workers(number: int) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name} before it began")


def _decide(run: Planned, team: Team, progress: bool) -> dict[str, Any]:
    if not is_complete(run):
        _write_config(run)
        if run.job.config.hardware.processes == 1 and not team.others:
            from launch.run.worker import work  # with DeepSpeed, which a finished run does not need

            work(run.directory, progress=progress)
        else:
            judge(run, work_together(run, team).values())
    return read_json(run.rundir.results)


@contextmanager
def _alone_with(run: Planned) -> Iterator[None]:
    run.directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is being made by another process: waiting", run.directory)
        lock.acquire()
    try:  # (`with lock` would take it a second time, and hold it after a failure)
        yield
    finally:
        lock.release()


def _stored(file: Path) -> Any:
    """What `_write_config` wrote.

    Raises:
        BrokenFile: it was cut short or overwritten.
    """
    try:
        found = OmegaConf.load(file)
        if "fingerprint" in found and "job" in found:
            return found
        why = "it has no fingerprint"
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        why = str(error).split("\n")[0]
    raise BrokenFile(file, why)


def _write_config(run: Planned) -> None:
    """`config.yaml`: the resolved configuration and what one needs to know to make the run again."""
    rundir = run.rundir
    if rundir.config.is_file():
        found = _stored(rundir.config).fingerprint
        if found != run.job.fingerprint:
            raise UserError(
                f"{run.directory} holds another run (fingerprint {found}, not {run.job.fingerprint}): "
                "choose another hydra.run.dir, or remove the folder"
            )
    # Results of another way of measuring must not count as this one's while it is being made.
    rundir.results.unlink(missing_ok=True)
    job = run.job
    values = {
        **job.config.model_dump(mode="json"),
        "fingerprint": job.fingerprint,
        "job": {
            "role": run.role,
            "start": asdict(job.start),
            "reinforced": asdict(job.reinforced) if job.reinforced else None,
            "beside": {name: str(path) if path else None for name, path in vars(job.baselines).items()},
            "evaluation_key": run.evaluation_key,
        },
        "versions": {package: version(package) for package in _PACKAGES},
        "git": _git_revision(),
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with replacing(rundir.config) as temporary:
        OmegaConf.save(OmegaConf.create(portable(values)), temporary)


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    )
    return found.stdout.strip() or None
