"""`hydra/sweeper=optuna`: each trial of an Optuna study is a job of the sweep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from launch.sweep.hydra_hooks import RecordingLauncher
from launch.sweep.job_records import sweep_name
from unlearn.errors import UserError
from unlearn.files import replacing

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from launch.sweep.study import SharedStudy

_POLL = 5.0  # seconds between two checks of the trials of other commands


class OptunaSweeper(Sweeper):
    """Search the ranges of the overrides; the keys are those of configs/hydra/sweeper/optuna.yaml."""

    def __init__(
        self,
        sampler: partial[BaseSampler],
        n_trials: int,
        n_jobs: int,
        storage: str | None,
        study_name: str | None,
        heartbeat_s: int,
        params: Mapping[str, Any] | None,
        trial: int | None,
    ) -> None:
        self._sampler, self._params = sampler, params or {}
        self._n_trials, self._n_jobs = n_trials, n_jobs
        self._storage, self._study_name, self._heartbeat_s = storage, study_name, heartbeat_s

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        assert isinstance(launcher, RecordingLauncher)  # the command launches no sweep without it
        self._launcher = launcher
        self._config_name = config.hydra.job.config_name
        if config.get("dry_run"):
            self._storage = None  # a plan is no trial

    def sweep(self, arguments: list[str]) -> None:
        """Make the trials that the study lacks, and wait for those of other commands.

        A trial of a command that dies meanwhile is freed, and made here.

        Raises:
            UserError: the storage or the search space cannot be used.
        """
        from launch.sweep.search_space import search_space
        from launch.sweep.study import SharedStudy

        lines = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        space = search_space(lines)
        if not space.distributions:
            raise UserError("hydra/sweeper=optuna: nothing is searched; give a key a range or values")
        study = SharedStudy(
            self._storage, self._study_name or sweep_name(lines, self._config_name), self._sampler, space,
            self._n_trials, self._heartbeat_s,
        )  # fmt: skip
        waits = False
        while (trials := study.claim(self._n_jobs)) or study.elsewhere():
            if trials:
                self._make(
                    study, {job: space.overrides(trial.params) for job, trial in trials.items()}, trials
                )
            else:
                if not waits:
                    Console().print("waiting for the trials of other commands")
                waits = True
                time.sleep(min(_POLL, self._heartbeat_s))
        self._write(study)

    def _make(self, study: SharedStudy, jobs: Mapping[int, list[str]], trials: Mapping[int, Any]) -> None:
        """Launch trials together and report their values; if they are stopped, give back those cut off."""
        try:
            with study.heartbeats([*trials.values()]):
                values = self._launcher.launch_trials(jobs, study.jobs, anew=self._storage is None)
        except BaseException:
            study.end(trials, self._launcher.records.values(trials))
            raise
        study.end(trials, values)

    def _write(self, study: SharedStudy) -> None:
        """Write the best trial next to the records of the sweep."""
        if (best := study.best()) is not None:
            text = OmegaConf.to_yaml({"name": "optuna", "best_params": best.params, "best_value": best.value})
            with replacing(self._launcher.records.folder / "optimization_results.yaml") as temporary:
                temporary.write_text(text, encoding="utf-8")
