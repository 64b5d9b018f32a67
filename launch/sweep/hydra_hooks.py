"""Hooks between Hydra's sweepers and launchers: records of jobs, signals, pools that lost a process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.utils import instantiate
from omegaconf import DictConfig, read_write

from launch import slurm
from launch.config_groups import groups
from launch.sweep.job_records import Records
from launch.sweep.sweep_run import SweepRun
from unlearn.errors import ConfigError
from unlearn.signals import on_stop


def job_count(composed: DictConfig, overrides: Sequence[str]) -> int:
    """Return how many jobs are launched at once: those of a grid, or the trials a search chooses together."""
    sweeper = composed.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_jobs)
    every = OverridesParser.create().parse_overrides(swept(composed, overrides))
    return len(BasicSweeper.split_arguments(every, None)[0])


def swept(composed: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a grid: the command's, and what a recipe sweeps of other keys."""
    given = {override.partition("=")[0] for override in overrides}
    params = _forced(composed.hydra.sweeper.get("params") or {})
    return [*(f"{key}={value}" for key, value in params.items() if key not in given), *overrides]


def check_search(sweeper: DictConfig) -> None:
    """Check the counts of a search.

    Raises:
        ConfigError: all that are no whole number of at least 1.
    """
    counts = {key: sweeper[key] for key in ("n_trials", "n_jobs", "heartbeat_s") if key in sweeper}
    problems = [
        f"hydra.sweeper.{key}={count!r}: a whole number, at least 1"
        for key, count in counts.items()
        if not isinstance(count, int) or isinstance(count, bool) or count < 1
    ]
    if problems:
        raise ConfigError(problems)


@contextmanager
def hooked(records: Records) -> Iterator[None]:
    """Record the jobs before they are launched, for every sweeper and launcher, and let our sweepers be used.

    Hydra's callbacks do not get the jobs, but every sweeper gets its launcher from `Plugins`. This makes only
    sweepers of the package `hydra_plugins`, which an editable installation cannot add to.
    """
    plugins = Plugins.instance()
    launcher: Callable[..., Launcher] = plugins.instantiate_launcher
    sweeper: Callable[..., Sweeper] = plugins.instantiate_sweeper

    def recording(*, config: DictConfig, **others: Any) -> RecordingLauncher:
        return RecordingLauncher(launcher(config=config, **others), records, config)

    def own_or_installed(*, config: DictConfig, **others: Any) -> Sweeper:
        if "params" in config.hydra.sweeper:
            with read_write(config):
                config.hydra.sweeper.params = _forced(config.hydra.sweeper.params or {})
        if config.hydra.sweeper._target_.startswith("hydra"):
            return sweeper(config=config, **others)
        own: Sweeper = instantiate(config.hydra.sweeper)
        own.setup(config=config, **others)
        return own

    vars(plugins).update(instantiate_launcher=recording, instantiate_sweeper=own_or_installed)
    try:
        yield
    finally:
        del vars(plugins)["instantiate_launcher"], vars(plugins)["instantiate_sweeper"]


def _forced(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe sweeps by keys with the sign of those of a command (`force_overrides`).

    Hydra takes `method.lr` of a recipe and `++method.lr` of a command for two keys, and would sweep both.
    """
    plain = {*groups()}
    return {
        key if key in plain or key.startswith(("~", "hydra.", "hydra/")) else f"++{key.lstrip('+')}": value
        for key, value in params.items()
    }


class RecordingLauncher:
    """A launcher around another one; sweepers call `launch` alone, except for the one of a search."""

    def __init__(self, inner: Launcher, records: Records, config: DictConfig) -> None:
        self.records = records
        self._inner = inner
        self._command = list(config.hydra.overrides.task)
        self._pool = type(inner).__name__ == "JoblibLauncher"
        self._in_turn = self._pool and _widened(vars(inner)["joblib"])
        self._queue = type(inner).__name__ == "SlurmLauncher"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = dict(enumerate(job_overrides, start=initial_job_idx))
        if initial_job_idx == 0:
            self.records.take_configuration()
        self.records.announce(jobs, 0, self._command, anew=initial_job_idx == 0)
        return self._launch(jobs)

    def launch_trials(
        self, jobs: Mapping[int, Sequence[str]], total: int, *, anew: bool
    ) -> dict[int, float | None]:
        """Launch trials of a search together, and return their values; None for one that failed.

        Args:
            jobs: overrides by the number in the study. total: trials of the study. anew: whether job 0 begins
                the sweep anew; otherwise other commands record theirs in the same folder.

        Raises:
            KeyboardInterrupt: they were stopped.
        """
        jobs = {number: [quoted(override) for override in job] for number, job in jobs.items()}
        self.records.announce(jobs, total, self._command, anew=anew and 0 in jobs)
        self._launch({number: [*job, f"hydra.sweeper.trial={number}"] for number, job in jobs.items()})
        if self.records.stopping() or any(self.records.stopped(number) for number in jobs):
            raise KeyboardInterrupt
        return {number: self.records.value(number) for number in jobs}

    def _launch(self, jobs: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        with _forwarding(self.records) if self._pool else slurm.together() if self._queue else nullcontext():
            returned = self._through_pool(jobs) if self._pool else self._through(jobs)
        return [self._recorded(*each) for each in zip(jobs, jobs.values(), returned, strict=True)]

    def _through(self, jobs: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        return [*self._inner.launch([*jobs.values()], min(jobs))]

    def _recorded(self, number: int, job: Sequence[str], returned: JobReturn) -> JobReturn:
        """Record a job that failed in the launcher; it counts as completed, so that no other job stops."""
        if returned.status == JobStatus.COMPLETED:
            return returned
        if not self.records.ended(number):
            reason = " ".join(str(returned._return_value).split())
            self.records.end(number, SweepRun(tuple(job), None, reason, code=1))
        return _completed(job)

    def _through_pool(self, jobs: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        """The results of a pool. If a process is killed, the pool ends all its jobs, and they start again."""
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if self._in_turn and len(jobs) > 1:
            return [done for number, job in jobs.items() for done in self._through_pool({number: job})]
        try:
            return self._through(jobs)
        except BrokenProcessPool:
            if self.records.stopping():
                return [_completed(job) for job in jobs.values()]
            if not self.records.begun(next(iter(jobs))):
                raise  # no job began: it would break again
        return self._one_by_one(jobs)

    def _one_by_one(self, jobs: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        """Start each job that had begun again, one at a time, so that one that is killed ends no other."""
        from joblib.externals.loky.process_executor import BrokenProcessPool

        sys.stderr.write("a process of a job was killed (out of memory?); the jobs of its pool start again\n")
        returned: list[JobReturn] = []
        left = dict(jobs)
        for number, job in jobs.items():
            if not self.records.begun(number):
                return [*returned, *self._through_pool(left)]
            del left[number]
            if not self.records.ended(number):
                try:
                    returned += self._through({number: job})
                    continue
                except BrokenProcessPool:
                    sys.stderr.write(f"{' '.join(job)}: killed again\n")
            returned.append(_completed(job, self.records.value(number)))
        return returned


def _widened(options: dict[str, Any]) -> bool:
    """Return whether joblib's options are for one job at a time, and let them be for two processes then.

    For one, joblib starts none: the jobs would be made in this process, and be dealt no GPU.
    """
    from joblib import effective_n_jobs

    if effective_n_jobs(options["n_jobs"]) > 1:
        return False
    options["n_jobs"] = 2
    return True


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
        records.stop()
        children = {child.pid for child in psutil.Process().children(recursive=True)}
        for process in children.intersection(records.running()):
            os.kill(process, signal.SIGTERM)

    with on_stop(stop):
        yield
