"""The study of a search: claim its trials, report them, and free those of a command that died.

The jobs of a study are numbered from 0. Each waits in it as a trial until a command claims it; Optuna lets
only one process take a waiting trial. Several commands may offer the same job at once: its first trial
counts, the others are dropped. So a study has exactly its number of jobs, whatever database holds it.

A failed trial without the attribute `failed` does not count: it was dropped, or its command was stopped or
died. Its job is offered again with the same parameters, so that a run that was cut off continues.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from threading import Event, Thread
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import (
    ExperimentalWarning,
    OptunaError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.samplers import BaseSampler, GridSampler, RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, fail_stale_trials
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from launch.sweep.search_space import SearchSpace
from unlearn.errors import UserError

_JOB, _FAILED = "job", "failed"
_BUSY = 60.0  # seconds to wait for a lock of SQLite

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)
warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used", UserWarning)


class SharedStudy:
    """A study that several commands may work on.

    Args:
        where: its storage (`open_study`). sampler: makes a sampler from a seed; Optuna's GridSampler stands
            for every point of `space`. n_trials: jobs of the study; of a grid, at most its points.
    """

    def __init__(
        self,
        where: str | None,
        name: str,
        sampler: partial[Any],
        space: SearchSpace,
        n_trials: int,
        heartbeat_s: int,
    ) -> None:
        self._space = space
        self._points: list[dict[str, Any]] = [{} for _ in range(n_trials)]
        if sampler.func is GridSampler:
            sampler = partial(RandomSampler, seed=0)  # never asked: each point is set
            self._points = space.grid()[:n_trials]
        self._study, self._storage, self._lock = open_study(where, name, _SeededByJob(sampler), heartbeat_s)

    @property
    def jobs(self) -> int:
        return len(self._points)

    def claim(self, most: int) -> dict[int, Trial]:
        """Return up to `most` trials by job number; none if no job waits."""
        claimed: dict[int, Trial] = {}
        with self._lock:
            self._beat_first()
            fail_stale_trials(self._study)
            while len(claimed) < most and self._offer(most - len(claimed)):
                trial = self._study.ask(dict(self._space.distributions))
                job = trial.user_attrs.get(_JOB)
                first = min((t.number for t in self._counted() if t.user_attrs.get(_JOB) == job), default=-1)
                if job is None or first != trial.number:  # another command was faster
                    self.free(trial)
                else:
                    claimed[job] = trial
                    self._beat([trial])
        return claimed

    def end(self, trials: Mapping[int, Trial], values: Mapping[int, float | None]) -> None:
        """Report the values of trials, None for one that failed, and free those without."""
        for job, trial in trials.items():
            if job in values:
                self.tell(trial, values[job])
            else:
                self.free(trial)

    def tell(self, trial: Trial, value: float | None) -> None:
        """Report the value of a trial; None if it failed. A trial that was freed meanwhile stays so."""
        with suppress(UpdateFinishedTrialError):
            if value is None:
                trial.set_user_attr(_FAILED, True)
                self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            else:
                self._study.tell(trial, value, skip_if_finished=True)

    def free(self, trial: Trial) -> None:
        """Give a trial back."""
        self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def elsewhere(self) -> int:
        """Return how many trials other commands run that will end or be freed; 0 without heartbeats."""
        if not isinstance(self._storage, RDBStorage):
            return 0
        return sum(_JOB in trial.user_attrs for trial in self._in_state(TrialState.RUNNING))

    def best(self) -> FrozenTrial | None:
        """Return the trial with the largest value, if one has a value."""
        return self._study.best_trial if self._in_state(TrialState.COMPLETE) else None

    @contextmanager
    def heartbeats(self, trials: Sequence[Trial]) -> Iterator[None]:
        """Tell the database again and again that these trials run."""
        if not isinstance(self._storage, RDBStorage):
            yield
            return
        ended, interval = Event(), self._storage.get_heartbeat_interval()

        def keep_beating() -> None:
            while not ended.wait(interval):
                with suppress(SQLAlchemyError, StorageInternalError):  # it may be back for the next one
                    self._beat(trials)

        thread = Thread(target=keep_beating, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _beat_first(self) -> None:
        """Begin the heartbeat of running trials that have none, so that those of a dead command become stale.

        A command that dies as it claims one leaves it so, and Optuna frees only trials that had a heartbeat.
        """
        if isinstance(self._storage, RDBStorage):
            with self._storage.engine.connect() as connection:
                beating = set(connection.execute(text("SELECT trial_id FROM trial_heartbeats")).scalars())
            for trial in self._in_state(TrialState.RUNNING):
                if trial._trial_id not in beating:
                    self._storage.record_heartbeat(trial._trial_id)

    def _beat(self, trials: Sequence[Trial]) -> None:
        if isinstance(self._storage, RDBStorage):
            for trial in trials:
                self._storage.record_heartbeat(trial._trial_id)

    def _offer(self, most: int) -> bool:
        """Let up to `most` jobs wait, the first without a trial, with the parameters of a freed one.

        Returns whether a job waits.
        """
        waiting = self._in_state(TrialState.WAITING)
        known = {trial.user_attrs.get(_JOB) for trial in [*self._counted(), *waiting]}
        missing = [job for job in range(self.jobs) if job not in known][: max(0, most - len(waiting))]
        before = {trial.user_attrs.get(_JOB): trial.params for trial in self._in_state(TrialState.FAIL)}
        for job in missing:
            self._study.enqueue_trial(before.get(job) or self._points[job], user_attrs={_JOB: job})
        return bool(waiting or missing)

    def _counted(self) -> list[FrozenTrial]:
        """The trials that run, have a value or failed by themselves."""
        return [
            trial
            for trial in self._in_state(TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL)
            if trial.state != TrialState.FAIL or trial.user_attrs.get(_FAILED)
        ]

    def _in_state(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


class _SeededByJob(BaseSampler):
    """A new sampler for each trial, seeded by its job: commands draw differently, and the same job alike."""

    def __init__(self, make: partial[Any]) -> None:
        self._make, self._seed = make, make.keywords.get("seed")
        self._sampler: BaseSampler = make()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self._seed is not None:
            job = trial.user_attrs.get(_JOB, 0)
            (seed,) = np.random.SeedSequence([self._seed, job]).generate_state(1)
            self._sampler = self._make(seed=int(seed))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


def open_study(
    where: str | None, name: str, sampler: BaseSampler, heartbeat_s: int
) -> tuple[Study, BaseStorage, AbstractContextManager[Any]]:
    """Open or create a study: in a database (a URL of SQLAlchemy), a journal file, or memory for None.

    Returns it with its storage, and the lock to claim trials under: SQLite does not keep two processes from
    taking the same waiting trial, nor from creating the same tables.

    Raises:
        UserError: it cannot be opened, or minimises.
    """
    lock: AbstractContextManager[Any] = nullcontext()
    try:
        if where is None:
            storage: BaseStorage = InMemoryStorage()
        elif "://" not in where:
            storage = JournalStorage(JournalFileBackend(where))
        elif (url := make_url(where)).get_backend_name() == "sqlite":
            if url.database in (None, "", ":memory:"):
                raise ValueError("null keeps the study in memory")
            lock = FileLock(f"{url.database}.lock")
            with lock:
                busy = {"connect_args": {"timeout": _BUSY}}
                storage = RDBStorage(where, engine_kwargs=busy, heartbeat_interval=heartbeat_s)
        else:
            storage = RDBStorage(where, heartbeat_interval=heartbeat_s)
        with lock:
            study = optuna.create_study(
                storage=storage, study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
            )
            if study.direction != StudyDirection.MAXIMIZE:
                raise ValueError(f"study {name} minimises; choose another hydra.sweeper.study_name")
    except (SQLAlchemyError, OptunaError, ImportError, OSError, RuntimeError, ValueError) as error:
        shown = make_url(where).render_as_string() if where and "://" in where else where
        raise UserError(f"hydra.sweeper.storage={shown}: {' '.join(str(error).split())}") from None
    return study, storage, lock
