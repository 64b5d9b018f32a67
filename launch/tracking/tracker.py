"""The tracker as the program calls it: one object to log to, which cannot stop the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.tracking.trackers import Row, TrackedRun, Tracker, make
from unlearn.config import TrackerConfig

log = logging.getLogger(__name__)


class NullTracker(Tracker):
    """A tracker that ignores everything."""

    def __init__(self) -> None: ...


class GuardedTracker(Tracker):
    """Calls a tracker until its first failure or its end; after that it does nothing. No method raises."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker: Tracker | None = tracker
        self.name = name

    def log(self, row: Row, step: int) -> None:
        self._guarded(f"logging step {step}", lambda tracker: tracker.log(row, step))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self._guarded(f"logging the table {name!r}", lambda tracker: tracker.table(name, columns, rows))

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        self._guarded(f"logging the figure {name!r}", lambda tracker: tracker.figure(name, figure))

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        self._guarded(f"logging the model {folder}", lambda tracker: tracker.model(name, folder, facts))

    def summary(self, values: Row) -> None:
        self._guarded("writing the summary", lambda tracker: tracker.summary(values))

    def finish(self, exit_code: int = 0) -> None:
        self._guarded("finishing", lambda tracker: tracker.finish(exit_code))
        self.tracker = None

    def _guarded(self, what: str, call: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            call(self.tracker)
        except Exception as error:
            self.tracker = None
            _warn(self.name, what, error)


def open_tracker(settings: TrackerConfig, described: Callable[[], TrackedRun]) -> Tracker:
    """Return the tracker of a run, guarded; a NullTracker if it is off or cannot be opened.

    `described` is not called where it is off.
    """
    try:
        tracker = make(settings, described)
    except Exception as error:
        _warn(settings.name, "opening", error)
        return NullTracker()
    return NullTracker() if tracker is None else GuardedTracker(tracker, settings.name)


def _warn(name: str, what: str, error: Exception) -> None:
    log.warning(
        "tracker %s stopped: %s failed (%s: %s). The run goes on without it; "
        "its files (history.jsonl, results.json) hold everything.",
        name,
        what,
        type(error).__name__,
        error,
    )
