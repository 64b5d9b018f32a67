"""A tracker whose own log says which numbers it has, so that a run that is continued logs none twice."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from launch.tracking.trackers._base import Row, TrackedRun, Tracker

_SAME = 1e-6  # relative: a log may keep fp32


class NumberTracker(Tracker, ABC):
    """Passes on the finite numbers that the log does not have yet.

    `known`: the numbers that the log has, by key and step. `step`: the last one with a number, 0 without any.
    """

    def __init__(self, options: Any, run: TrackedRun) -> None:
        super().__init__(options, run)
        self.known = self.open()
        self.step = max((step for steps in self.known.values() for step in steps), default=0)
        for row in run.history:  # what it has not, where the run began without it
            self.log(row, int(row["step"]))

    @abstractmethod
    def open(self) -> dict[str, dict[int, float]]:
        """Open the run's log, and return the numbers that it has."""

    @abstractmethod
    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers to the log."""

    def key(self, key: str) -> str:
        """Return the name that the log has for a key."""
        return key

    def log(self, row: Row, step: int) -> None:
        self.step = max(self.step, step)
        row = {key: value for key, value in row.items() if key != "step"}
        self._add(row, step, lambda key, value: step in self.known.get(key, {}))

    def summary(self, values: Row) -> None:
        """Write the numbers that the log does not have at the last step, or has otherwise."""
        self._add(values, self.step, self._has)

    def _add(self, row: Row, step: int, known: Callable[[str, float], bool]) -> None:
        finite = {self.key(key): v for key, v in row.items() if v is not None and math.isfinite(v)}
        new = {key: value for key, value in finite.items() if not known(key, value)}
        self.write(new, step)
        for key, value in new.items():
            self.known.setdefault(key, {})[step] = value

    def _has(self, key: str, value: float) -> bool:
        return math.isclose(value, self.known.get(key, {}).get(self.step, math.nan), rel_tol=_SAME)
