"""The contract of a tracker, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unlearn.config import Section

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class TrackedRun:
    """A run as its tracker gets it.

    - `id`: drawn for the folder of the run; a run that is continued has the same one.
    - `name`: a readable title. `kind`: what the run does (`unlearn`, `finetune`, `evaluate`, `probe`).
    - `project`: the study. `group`: the sweep, None without one.
    - `tags`: may hold empty or repeated entries.
    - `config`: the configuration without home paths and secrets, so that it may leave the machine.
    - `directory`: the run's.
    - `history`: the rows that earlier processes of this run logged, each with its `step`.
    """

    id: str
    name: str
    kind: str
    project: str
    group: str | None
    tags: Sequence[str]
    config: Mapping[str, Any]
    directory: Path
    history: Sequence[Mapping[str, Any]] = ()


class Tracker:
    """Mirrors a run to a service or a file of your own. The files of the run's directory are written anyway.

    A tracker is a subclass in a module of `launch.tracking.trackers` or of your own, named by `tracker.name`.
    Its options are further keys of `tracker`, with other names than the keys of `TrackerConfig`. The main
    process alone makes these calls, in each run of a plan (target and retain model are runs too):

    1. `check`, before anything is loaded.
    2. `off`; where it says so, nothing else is called.
    3. The constructor, when the run begins. The rows that earlier processes logged are in `run.history`.
    4. `log` after each training step, evaluation and measurement of a probe. Steps do not go back; a run that
       is continued logs those after its last checkpoint again.
    5. When the run has its results: `summary`, `table`, `figure`, and `model` with `tracker.model=true`.
    6. `finish` at the end, also of a run that failed.

    Any call may raise: the log then says so once, the tracker gets no more calls, and the run goes on.
    """

    Options: ClassVar[type[Section]] = Section

    def __init__(self, options: Any, run: TrackedRun) -> None:
        self.options = options
        self.run = run

    @classmethod
    def check(cls, options: Any) -> list[str]:
        """Return what is wrong with the options or the environment, each a sentence that names it."""
        return []

    @classmethod
    def off(cls, options: Any) -> bool:
        """Return whether the options or the environment turn the tracker off."""
        return False

    def log(self, row: Row, step: int) -> None:
        """Log numbers of an optimizer step; rows of the same step belong together."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table of cells (text, number or None) at the last logged step."""

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Log a chart, as plotly's `{data, layout}`, at the last logged step."""

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        """Upload the files of a model with some facts about it."""

    def summary(self, values: Row) -> None:
        """Write the numbers of the whole run; None stands for "could not be measured"."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the tracker."""
