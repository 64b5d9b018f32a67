"""Hooks between Hydra's sweepers and launchers: records of jobs, signals, pools that lost a process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import psutil
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from launch import slurm
from launch.sweep.job_records import Records
from launch.sweep.sweep_run import SweepRun
from unlearn.signals import on_stop


def job_count(composed: DictConfig, overrides: Sequence[str]) -> int:
    """Return how many jobs are launched at once: those of a grid, or the trials a search chooses together."""
    sweeper = composed.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_jobs)
    swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*swept, *overrides]), None)
    return len(jobs[0])


@contextmanager
def record_launched_jobs(records: Records) -> Iterator[None]:
    """Record the jobs before they are launched, for every sweeper and launcher.

    Hydra's callbacks do not get the jobs, but every sweeper gets its launcher from `Plugins`.
    """
    plugins = Plugins.instance()
    original: Callable[..., Launcher] = plugins.instantiate_launcher

    def instantiate(*, config: DictConfig, **others: Any) -> _RecordingLauncher:
        return _RecordingLauncher(original(config=config, **others), records, config)

    vars(plugins)["instantiate_launcher"] = instantiate
    try:
        yield
    finally:
        del vars(plugins)["instantiate_launcher"]


class _RecordingLauncher:
    """A launcher around another one; sweepers call `launch` alone."""

    def __init__(self, inner: Launcher, records: Records, config: DictConfig) -> None:
        self._inner = inner
        self._records = records
        self._command = list(config.hydra.overrides.task)
        self._trials = OmegaConf.select(config, "hydra.sweeper.n_trials") or 0
        self._pool = type(inner).__name__ == "JoblibLauncher"
        self._queue = type(inner).__name__ == "SlurmLauncher"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self._trials:
            job_overrides = [[quoted(override) for override in job] for job in job_overrides]
        self._records.announce(initial_job_idx, job_overrides, self._trials, self._command)
        with _forwarding(self._records) if self._pool else slurm.together() if self._queue else nullcontext():
            launch = self._through_pool if self._pool else self._inner.launch
            returned = launch(job_overrides, initial_job_idx)
        return [self._recorded(*each) for each in zip(count(initial_job_idx), job_overrides, returned)]

    def _recorded(self, number: int, job: Sequence[str], returned: JobReturn) -> JobReturn:
        """Record a job that failed in the launcher; it counts as completed, so that no other job stops."""
        if returned.status == JobStatus.COMPLETED:
            return returned
        if not self._records.ended(number):
            reason = " ".join(str(returned._return_value).split())
            self._records.end(number, SweepRun(tuple(job), None, reason, code=1))
        return _completed(job)

    def _through_pool(self, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """The results of a pool. If a process is killed, the pool ends all its jobs, and they start again."""
        from joblib.externals.loky.process_executor import BrokenProcessPool

        try:
            return self._inner.launch(jobs, first)
        except BrokenProcessPool:
            if self._records.stop.exists():
                return [_completed(job) for job in jobs]
            if not self._records.begun(first):
                raise  # no job began: it would break again
        return self._one_by_one(jobs, first)

    def _one_by_one(self, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Start each job that had begun again, one at a time, so that one that is killed ends no other."""
        from joblib.externals.loky.process_executor import BrokenProcessPool

        sys.stderr.write("a process of a job was killed (out of memory?); the jobs of its pool start again\n")
        returned: list[JobReturn] = []
        for number, job in enumerate(jobs, start=first):
            if not self._records.begun(number):
                return [*returned, *self._through_pool(jobs[number - first :], number)]
            if not self._records.ended(number):
                try:
                    returned += self._inner.launch([job], number)
                    continue
                except BrokenProcessPool:
                    sys.stderr.write(f"{' '.join(job)}: killed again\n")
            returned.append(_completed(job, self._records.value(number)))
        return returned


def quoted(override: str) -> str:
    """Quote an override of a sampler again, if Hydra would read it as something else without quotes."""
    try:
        if not OverridesParser.create().parse_override(override).is_sweep_override():
            return override
    except HydraException:
        pass
    key, _, value = override.partition("=")
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _completed(job: Sequence[str], value: float | None = None) -> JobReturn:
    return JobReturn(overrides=job, status=JobStatus.COMPLETED, _return_value=value)


@contextmanager
def _forwarding(records: Records) -> Iterator[None]:
    """On a signal, stop the jobs in child processes, and let no other job begin."""

    def stop(_: int) -> None:
        records.stop.touch()
        children = {child.pid for child in psutil.Process().children(recursive=True)}
        for process in children.intersection(records.running()):
            os.kill(process, signal.SIGTERM)

    with on_stop(stop):
        yield
