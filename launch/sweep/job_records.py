"""The records that the jobs of a sweep write into one folder, wherever they run.

`jobs.json` lists the launched jobs. `<job number>.json` exists from the start of the job, and has its exit
code from its end. While `stop` exists, no further job begins; while `stop-<command>` does, none of that
command.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from launch.compose import PRIMARY
from launch.run.slurm_task import leads
from launch.sweep.sweep_run import SweepRun, varying
from unlearn.files import digest, read_json, write_json
from unlearn.signals import STOPPED

NO_EXIT_CODE = "died without an exit code (killed?); the same sweep started again continues it"
NOT_ENDED = "has not ended: it runs on {host}, or was killed there"
STILL_RUNS = "still runs, in process {process} of another command"
_NOT_IN_NAME = (
    "hydra/launcher", "hydra.launcher", "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials", "hardware",
    "tracker", "dry_run",
)  # fmt: skip


def sweep_name(overrides: Sequence[str], config_name: str | None = None) -> str:
    """Return the name of a sweep: the same for the same command, wherever its jobs run.

    config_name: the primary file, if it is not the project's.
    """
    plain = sorted(o.lstrip("+") for o in overrides)
    if config_name not in (None, PRIMARY):
        plain.append(f"--config-name={config_name}")
    what = [o for o in plain if not o.startswith(_NOT_IN_NAME)]
    recipe = next((o.partition("=")[2] for o in what if o.startswith("experiment=")), "")
    parts = ["sweep", "".join(c if c.isalnum() or c in "-_" else "_" for c in recipe), digest(what)[:8]]
    return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Records:
    """The folder of one sweep, `<folder of all runs>/sweeps/<id>`.

    `command`: names the command among several that search together.
    """

    folder: Path
    command: str = ""

    def stop(self) -> None:
        """Let no further job of this command begin."""
        self.own_stop.touch()

    def stopping(self) -> bool:
        """Tell whether no further job begins."""
        return self.all_stop.exists() or self.own_stop.exists()

    @property
    def all_stop(self) -> Path:
        return self.folder / "stop"

    @property
    def own_stop(self) -> Path:
        return self.folder / f"stop-{self.command}"

    def announce(
        self, jobs: Mapping[int, Sequence[str]], total: int, command: Sequence[str], *, anew: bool
    ) -> None:
        """Record that jobs are about to be launched, of `total` jobs in all.

        Records of an earlier start are removed, except those of the same job if it succeeded.

        Args:
            jobs: overrides by number. command: overrides of the command. anew: whether they begin the sweep;
                otherwise they follow others, which another command may record at this moment.
        """
        if not leads():
            return
        with FileLock(self._prepared() / f".{self.folder.name}.lock"):
            listed = {} if anew else self.listed()
            for number, overrides in jobs.items():
                listed[number] = tuple(overrides)
                before = self._read(number)
                if before and (before["code"] != 0 or tuple(before["overrides"]) != tuple(overrides)):
                    self._file(number).unlink()
            for file in self.folder.glob("[0-9]*.json"):
                if int(file.stem) not in listed:
                    file.unlink()
            jobs_of = {str(number): list(listed[number]) for number in sorted(listed)}
            total = max(total, len(listed))
            write_json(self.folder / "jobs.json", {"total": total, "given": list(command), "jobs": jobs_of})

    def take_configuration(self) -> None:
        """Move the configuration that Hydra has just written next to the runs into this folder.

        Another sweep of these runs writes one of the same name.
        """
        written = self.folder.parent.parent / "multirun.yaml"
        if not written.is_file():  # a sweeper may write none
            return
        self._prepared()
        self.folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another task of the step has moved it
            written.replace(self.folder / written.name)

    def begin(self, number: int, overrides: Sequence[str]) -> None:
        """Write a record without an exit code, which stays if the job is killed."""
        self._write(number, SweepRun(tuple(overrides), None, code=None))

    def end(self, number: int, run: SweepRun) -> None:
        """Write the final record of a job."""
        self._write(number, run)

    def ended(self, number: int) -> bool:
        """Tell whether a job has an exit code."""
        record = self._read(number)
        return record is not None and record["code"] is not None

    def stopped(self, number: int) -> bool:
        """Tell whether a job was stopped, or has not begun."""
        record = self._read(number)
        return record is None or record["code"] == STOPPED

    def value(self, number: int) -> float | None:
        """Return the value of a job for a sweeper that optimises."""
        record = self._read(number)
        return record["value"] if record else None

    def values(self, numbers: Iterable[int]) -> dict[int, float | None]:
        """Return the values of those jobs that came to their end, None for one that failed."""
        records = {number: record for number in numbers if (record := self._read(number))}
        return {n: each["value"] for n, each in records.items() if each["code"] not in (None, STOPPED)}

    def begun(self, number: int) -> bool:
        """Tell whether a job has a record."""
        return self._file(number).is_file()

    def running(self) -> list[int]:
        """Return the process ids of jobs that run on this machine."""
        records = [record for number in self.listed() if (record := self._read(number))]
        here = platform.node()
        return [r["process"] for r in records if r["code"] is None and r["host"] == here]

    def title(self, number: int) -> str:
        """Return `[3/18] method=npo seed=1`: its number and the overrides that other jobs do not have."""
        known, listed = read_json(self.folder / "jobs.json"), self.listed()
        command = known["given"] if len(listed) == 1 else ()  # a single job has no other to compare with
        own = dict(zip(listed, varying(list(listed.values()), command), strict=True))
        return f"[{number + 1}/{known['total']}] {own.get(number, '')}".rstrip()

    def runs(self) -> list[SweepRun]:
        """Return every job that has begun, in order."""
        records = [(overrides, self._read(number)) for number, overrides in self.listed().items()]
        return [_run_of(overrides, record) for overrides, record in records if record]

    def not_begun(self) -> list[tuple[str, ...]]:
        """Return the overrides of the jobs that were launched and have not begun."""
        return [overrides for number, overrides in self.listed().items() if not self.begun(number)]

    def listed(self) -> dict[int, tuple[str, ...]]:
        """Return the overrides of the jobs launched so far, by number."""
        file = self.folder / "jobs.json"
        if not file.is_file():
            return {}
        return {int(number): tuple(overrides) for number, overrides in read_json(file)["jobs"].items()}

    def _prepared(self) -> Path:
        """The folder of all sweeps, made if it is missing."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return self.folder.parent

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            return read_json(self._file(number))
        except FileNotFoundError:
            return None

    def _write(self, number: int, run: SweepRun) -> None:
        if not leads():
            return
        record = {
            "overrides": list(run.overrides),
            "code": run.code,
            "directory": str(run.directory.absolute()) if run.directory else None,
            "reason": run.reason,
            "beside": {name: str(folder.absolute()) for name, folder in run.baselines},
            "value": run.value,
            "feasible": run.feasible,
            "warnings": list(run.warnings),
            "results": None if run.results is None else dict(run.results),
            "host": platform.node(),
            "process": os.getpid(),
        }
        write_json(self._file(number), record)


def _run_of(overrides: tuple[str, ...], record: Mapping[str, Any]) -> SweepRun:
    if record["code"] is None:
        here, process = record["host"] == platform.node(), record["process"]
        if here and process != os.getpid() and psutil.pid_exists(process):
            return SweepRun(overrides, None, STILL_RUNS.format(**record), code=STOPPED)
        return SweepRun(overrides, None, NO_EXIT_CODE if here else NOT_ENDED.format(**record), code=1)
    directory = record["directory"]
    baselines = tuple((name, Path(folder)) for name, folder in record["beside"].items())
    return SweepRun(
        overrides, Path(directory) if directory else None, record["reason"], baselines,
        record["code"], record["value"], record["feasible"], tuple(record.get("warnings", ())),
        record.get("results"),
    )  # fmt: skip
