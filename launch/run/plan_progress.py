"""Say how many runs of a plan are done, and about how long the others take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.run.complete import is_complete
from launch.run.plan import Plan, Planned


@dataclass(frozen=True)
class Work:
    """What a run has to do: sequences to train on, each as often as it is visited, and evaluations."""

    sequences: float
    evaluations: int


_UNCOUNTED = Work(1.0, 1)
"""A run whose examples are not worth counting, as no training was measured that it could be compared with."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of the runs that are left; `whole`: no part of them is missing from it."""

    seconds: float
    whole: bool

    def __str__(self) -> str:
        return f"{'about' if self.whole else 'at least'} {duration(self.seconds)} left"


class PlanProgress:
    """Measures the runs of a plan that this process makes.

    Training and evaluation are estimated apart, each from runs that do only one of the two: those before the
    plan's last run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.measured: list[tuple[Work, float]] = []
        self._works: dict[Path, Work] = {}

    @contextmanager
    def measuring(self, run: Planned) -> Iterator[None]:
        """Note how long a run takes; one that is complete or continued says nothing about the others."""
        new = not is_complete(run) and not run.rundir.history.is_file()
        yield
        seconds = run.rundir.read_results().get("run/seconds")
        if new and seconds is not None:
            self.measured.append((self._work(run), seconds))

    def line(self) -> str:
        """Return `2/5 runs done, about 1 min left`, without a time as long as none can be estimated.

        "At least" stands for an estimate without evaluations, of which none has been measured yet.
        """
        left = [run for run in self.plan.runs if not is_complete(run)]
        trained = any(work.sequences for work, _ in self.measured)
        works = [self._work(run) if trained or not run.job.config.method.sets else _UNCOUNTED for run in left]
        time_left = estimate(self.measured, works)
        runs = len(self.plan.runs)
        done = f"{runs - len(left)}/{runs} runs done"
        return f"{done}, {time_left}" if time_left else done

    def _work(self, run: Planned) -> Work:
        if run.directory not in self._works:
            self._works[run.directory] = work_of(run)
        return self._works[run.directory]


def estimate(measured: Sequence[tuple[Work, float]], left: Sequence[Work]) -> Estimate | None:
    """Return the time that some runs take by what others took, in seconds; None where nothing is known."""
    training = _rate([(work.sequences, seconds) for work, seconds in measured if not work.evaluations])
    evaluation = _rate([(work.evaluations, seconds) for work, seconds in measured if not work.sequences])
    sequences, evaluations = sum(w.sequences for w in left), sum(w.evaluations for w in left)
    known = sequences * (training or 0.0) + evaluations * (evaluation or 0.0)
    missing = (training is None and sequences) or (evaluation is None and evaluations)
    return Estimate(known, not missing) if known else None


def _rate(measured: Sequence[tuple[float, float]]) -> float | None:
    """Return the seconds of one unit."""
    units = sum(count for count, _ in measured)
    return sum(seconds for _, seconds in measured) / units if units else None


def work_of(run: Planned) -> Work:
    """Return what a run has to do, by its configuration and the number of its examples."""
    from launch.inspection import schedule_of
    from unlearn.training.learning_rate import total_steps

    config = run.job.config
    method, scored = config.method, config.eval
    evaluations = int(bool(scored.benchmarks or scored.variants))
    schedule = schedule_of(config) if method.sets else None
    if schedule is None:
        return Work(0.0, evaluations)
    steps = total_steps(method, schedule.steps_per_epoch)
    if scored.benchmarks and scored.every_steps:
        evaluations += steps // scored.every_steps
    epochs = steps / schedule.steps_per_epoch
    return Work(epochs * schedule.sizes[schedule.anchor] * len(method.sets), evaluations)


def duration(seconds: float) -> str:
    """Write seconds as coarsely as an estimate is."""
    if seconds < 90:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
