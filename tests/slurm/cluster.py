"""A Slurm of one node on this machine, for as long as a test needs it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

HERE = Path(__file__).parent
_NOT_TO_BE_HAD = 69  # exit code of up.sh, with the reason
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """The variables with which commands reach it."""

    environment: dict[str, str]

    def ask(self, *command: str, cwd: Path | None = None) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(
            command, cwd=cwd, env=os.environ | self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def jobs(self) -> list[dict[str, str]]:
        """What Slurm knows of each job: JobId, ArrayJobId, JobState, Restarts …"""
        lines = self.ask("scontrol", "--oneliner", "show", "jobs").splitlines()
        fields = [[field.partition("=") for field in line.split(" ")] for line in lines if "JobId=" in line]
        return [{key: value for key, equals, value in line if equals} for line in fields]

    def jobs_numbered(self, numbers: Iterable[str]) -> list[dict[str, str]]:
        known = {job["JobId"]: job for job in self.jobs()}
        return [known[number] for number in numbers]


@contextmanager
def cluster(folder: Path, cpus: int) -> Iterator[Cluster]:
    """Up and down again, with all its jobs, whatever comes between."""
    started = subprocess.run([HERE / "up.sh", folder, str(cpus)], capture_output=True, text=True)
    if started.returncode == _NOT_TO_BE_HAD:
        pytest.skip(started.stderr.strip())
    try:
        assert started.returncode == 0, started.stderr
        lines = (folder / "environment").read_text().splitlines()
        yield Cluster(dict(line.split("=", 1) for line in lines))
    finally:
        subprocess.run([HERE / "down.sh", folder], check=True)


def eventually(what: Callable[[], T | None], limit: float = 120) -> T:
    """What is there in the end."""
    until = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return found
