"""Making one planned run happen: its lock, its directory, its processes."""

from __future__ import annotations

import logging
import os
import platform
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from launch.plan import Planned
from launch.worker import STOPPED, work
from unlearn.errors import UserError
from unlearn.files import read_json, replacing
from unlearn.signals import on_stop
from unlearn.trainer import Stopped

log = logging.getLogger(__name__)

_PACKAGES = ("unlearn-lab", "torch", "transformers", "accelerate", "deepspeed", "numpy", "wandb")


class RunFailed(UserError):
    """A process of the run ended badly; its directory keeps what was done."""


def is_complete(run: Planned) -> bool:
    """Whether the directory holds the results of this very run, measured in this very way.

    A run that another one needs for its model alone is not to be measured: what was measured of it stands.
    """
    rundir, config = run.rundir, run.job.config
    if not rundir.results.is_file() or not rundir.config.is_file():
        return False
    stored = OmegaConf.load(rundir.config)
    if stored.fingerprint != run.job.fingerprint:
        return False
    if not config.eval.benchmarks and not config.eval.variants and config.method.makes_model:
        return rundir.model.is_dir() or not config.save_model
    return bool(stored.job.evaluation_key == run.evaluation_key)


def ensure(run: Planned, *, progress: bool = True) -> dict[str, Any]:
    """The results of a run: read if it is complete, continued or made if not.

    Only one process on the machine works at a run; others wait for it. The lock is the operating system's,
    so it dies with its holder.

    Raises:
        UserError: the directory belongs to another run, or the run failed.
        Stopped: a signal stopped it; start it again to continue.
    """
    run.directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is being made by another process: waiting", run.directory)
        lock.acquire()
    try:  # (`with lock` would take it a second time, and hold it after a failure)
        if not is_complete(run):
            _write_config(run)
            _execute(run, progress)
        return read_json(run.rundir.results)
    finally:
        lock.release()


def _execute(run: Planned, progress: bool) -> None:
    processes = run.job.config.hardware.processes
    if processes == 1:
        work(run.directory, progress=progress)
        return
    codes = _spawn(run, processes)
    if any(code == STOPPED for code in codes):
        raise Stopped(f"{run.directory}: stopped by a signal; start it again to continue")
    failed = {rank: code for rank, code in enumerate(codes) if code != 0}
    if failed:
        first = next(iter(failed))
        raise RunFailed(
            f"{run.role}: process {first} of {processes} ended with code {failed[first]}; see "
            f"{run.rundir.log} and {run.directory}/process-*.log. "
            "Started again, the run continues from its last checkpoint"
        )


def _spawn(run: Planned, processes: int) -> list[int]:
    """Start one worker per process, and end all when one fails; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "launch.worker", str(run.directory.absolute())]
    workers = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # The main process shares the terminal, for its progress bar; the others leave a log.
        output = None if rank == 0 else (run.directory / f"process-{rank}.log").open("w")
        workers.append(subprocess.Popen(command, env=os.environ | place, stdout=output, stderr=output))
        if output is not None:
            output.close()

    def forward(number: int) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    with on_stop(forward):
        while any(worker.poll() is None for worker in workers):
            if any(worker.returncode not in (None, 0, STOPPED) for worker in workers):
                _end(workers)
            time.sleep(0.05)
    return [worker.returncode for worker in workers]


def _end(workers: list[subprocess.Popen[bytes]], grace: float = 10.0) -> None:
    """The others wait in a collective for the one that failed: they will not end by themselves."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    until = time.monotonic() + grace
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()


def _write_config(run: Planned) -> None:
    """`config.yaml`: the resolved configuration and what one needs to know to make the run again."""
    rundir = run.rundir
    if rundir.config.is_file():
        found = OmegaConf.load(rundir.config).fingerprint
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
            "beside": {name: str(path) if path else None for name, path in vars(job.beside).items()},
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
        OmegaConf.save(OmegaConf.create(values), temporary)


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    )
    return found.stdout.strip() or None
