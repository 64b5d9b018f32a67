"""The arms of a comparison among the runs of a task: their settings, the choice of one, values by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from launch.report.claims.definitions import FORGET, RETAIN, Arm, At
from launch.report.claims.trial import spread
from launch.report.compare.runs import TASK
from launch.report.kept import KeptRun
from launch.report.run_groups import differing, mark
from launch.report.settings import plain, shortest, word

RATE = "method.lr"
SAME = ("train/steps", "method.batch")
"""What methods must have in common to be compared."""
_REPORTED_MARGIN = "margin of the reported items"


def of_reported(choose: str) -> str:
    """Return the key of the reported items that is what `choose` is of the selection items."""
    return _REPORTED_MARGIN if choose == "select/margin" else choose.replace("/selection/", "/")


class Missing(Exception):
    """Why an arm has no values."""


class NotMade(Missing):
    """An arm has no values since its runs were not made."""


@dataclass(frozen=True)
class Setting:
    """Runs of an arm that differ in the seed alone."""

    label: str
    runs: Mapping[Any, KeptRun]

    def mean(self, key: str) -> float:
        """Return the mean over seeds, NaN if a value is missing."""
        if key == _REPORTED_MARGIN:
            return self.mean(RETAIN) - self.mean(FORGET)
        return float(np.mean([run.number(key) for run in self.runs.values()]))

    def number(self, key: str) -> float | None:
        """Return a setting of the runs, None where it is no number."""
        value = self.value(key)
        return float(value) if isinstance(value, int | float) else None

    def value(self, key: str) -> Any:
        """Return a setting of the runs."""
        return next(iter(self.runs.values())).value(key)

    def ends(
        self, key: str, every: Sequence[Setting], others: Sequence[str] = ()
    ) -> tuple[float, float] | None:
        """Return the smallest and the largest number of `key` among settings alike in `others`.

        None if there are not two.
        """
        alike = [each for each in every if all(each.value(k) == self.value(k) for k in others if k != key)]
        known = sorted({number for each in alike if (number := each.number(key)) is not None})
        return (known[0], known[-1]) if len(known) > 1 else None


@dataclass(frozen=True)
class Candidates:
    """The runs of an arm in a task, by setting; `name` is the arm's, `free` are the keys that differ."""

    name: str
    settings: Sequence[Setting]
    free: Sequence[str] = (RATE,)

    def chosen(self, key: str, better: str, at: At) -> Setting:
        """Return the setting with the best, or worst, mean of the selection items.

        Raises:
            Missing: there are several, and the items were not measured.
        """
        settings = self.complete
        if len(settings) == 1:
            return settings[0]
        scores = np.array([each.mean(key) for each in settings])
        if np.isnan(scores).all():
            raise Missing(f"no {key}, by which one of {len(settings)} settings is chosen (eval.select)")
        order = scores if (better == "lower") == (at == "best") else -scores
        return settings[int(np.nanargmin(order))]

    def at_end(self, label: str, key: str) -> Literal["smallest", "largest"] | None:
        """Return which end of those tried a number of a setting is, None if neither.

        Among the settings that differ in it alone, as a further value may not have been tried at all rates.
        """
        every, chosen = self.complete, self.named(label)
        known = chosen and (chosen.ends(key, every, self.free) or chosen.ends(key, every))
        if not known or chosen is None or chosen.number(key) not in known:
            return None
        return "largest" if chosen.number(key) == known[1] else "smallest"

    def place(self, label: str) -> str:
        """Return among how many settings one was chosen, and which of its numbers are ends of those tried."""
        every = self.complete
        if len(every) == 1:
            return (
                "the only one" if len(self.settings) == 1 else f"of {len(self.settings)} the only one whole"
            )
        names = shortest(self.free)
        ends = [
            f"the {end} {'rate' if key == RATE else names[key]}"
            for key in self.free
            if (end := self.at_end(label, key)) is not None
        ]
        return ", ".join([f"of {len(every)}", *ends])

    def named(self, label: str) -> Setting | None:
        """Return the setting with this label."""
        return next((each for each in self.complete if each.label == label), None)

    def at_rates_of(self, other: Candidates) -> Candidates:
        """Return the settings whose learning rate the other arm was tried with, too."""
        rates = {each.number(RATE) for each in other.settings}
        own = [each for each in self.settings if each.number(RATE) in rates]
        return Candidates(self.name, own, self.free)

    def spread(self, key: str) -> dict[Any, float]:
        """Return the spread of a metric over the settings, by seed.

        Raises:
            Missing: there are fewer than two settings.
        """
        if len(self.complete) < 2:
            raise Missing("fewer than two settings of both, so no spread")
        seeds = set.intersection(*(set(each.runs) for each in self.complete))
        return {
            s: spread([each.runs[s].number(key) for each in self.complete]) for s in sorted(seeds, key=repr)
        }

    @cached_property
    def complete(self) -> list[Setting]:
        """The settings with the seeds that all have; if these are fewer than two, those with most seeds.

        Of a sweep that is under way the last seed has not been made with every setting.
        """
        seeds = set.intersection(*(set(each.runs) for each in self.settings))
        if len(seeds) < 2:
            most = max(len(each.runs) for each in self.settings)
            return [each for each in self.settings if len(each.runs) == most]
        return [
            Setting(each.label, {seed: run for seed, run in each.runs.items() if seed in seeds})
            for each in self.settings
        ]

    @property
    def common(self) -> tuple[str, ...]:
        """The values of `SAME`, as text."""
        run = next(iter(self.complete[0].runs.values()))
        return tuple(word(run.settings.get(key, run.results.get(key))) for key in SAME)


def candidates(name: str, arm: Arm, runs: Sequence[KeptRun]) -> Candidates:
    """Return the runs of a task that an arm names.

    Raises:
        NotMade: there are none, or of one value only of what the arm chooses.
        Missing: they differ in more than the arm allows.
    """
    own = [run for run in runs if _fits(run, arm.where)]
    if not own:
        raise NotMade(f"no runs of {name}")
    free = {RATE, *arm.choose}
    varied = [key for key in differing(own) if not TASK.fullmatch(key)]
    if other := [key for key in varied if key not in free]:
        raise Missing(f"the runs of {name} also differ in {', '.join(other)}")
    if arm.choose and not set(arm.choose) & set(varied):
        raise NotMade(f"the runs of {name} have one {' and one '.join(arm.choose)}")
    groups: dict[tuple[str, ...], list[KeptRun]] = {}
    for run in sorted(own, key=lambda run: [_sortable(run.value(key)) for key in varied]):
        groups.setdefault(mark(run, varied), []).append(run)
    names = shortest(varied)
    settings = [
        Setting(
            ", ".join(f"{names[key]} {word(members[0].value(key))}" for key in varied) or _rate(members[0]),
            {run.seed: run for run in members},
        )
        for members in groups.values()
    ]
    return Candidates(name, settings, varied)


def _fits(run: KeptRun, where: Mapping[str, Any]) -> bool:
    return run.role == "run" and all(run.value(key) == plain(value) for key, value in where.items())


def _rate(run: KeptRun) -> str:
    return f"lr {word(run.value(RATE))}"


def _sortable(value: Any) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return (not is_number, float(value) if is_number else 0.0, str(value))
