"""Trackers: mirrors of a run outside of its directory.

A tracker is a module of this package (see `_base.Tracker`), chosen by `tracker.name`.
"""

from __future__ import annotations

from collections.abc import Callable

from launch.tracking.trackers._base import Row, TrackedRun, Tracker
from unlearn import plugins
from unlearn.config import Section, TrackerConfig
from unlearn.errors import ConfigError

__all__ = ["TRACKERS", "Row", "TrackedRun", "Tracker", "check", "completed", "make"]

KEY = "tracker"
_PARTS = ("Options", "check", "off", "log", "table", "figure", "model", "summary", "finish")
TRACKERS = plugins.Kind(__name__, "tracker", "class", _PARTS)


def check(cfg: TrackerConfig) -> list[str]:
    """Return what is wrong with a tracker's name and its own options."""
    try:
        return _find(cfg).check(_options(cfg))
    except ConfigError as error:
        return error.problems


def completed(cfg: TrackerConfig) -> TrackerConfig:
    """Return the section with every option of its tracker.

    Raises:
        ConfigError: there is no such tracker, or its options do not fit.
    """
    return plugins.completed(cfg, _options(cfg))


def make(cfg: TrackerConfig, described: Callable[[], TrackedRun]) -> Tracker | None:
    """Return the tracker of a run, None where it is off.

    Raises:
        ConfigError: there is no such tracker, or its options do not fit.
        Exception: any error of the tracker.
    """
    options = _options(cfg)
    return None if _find(cfg).off(options) else _find(cfg)(options, described())


def _find(cfg: TrackerConfig) -> type[Tracker]:
    tracker: type[Tracker] = TRACKERS.find(cfg.name, f"{KEY}.name={cfg.name}")
    return tracker


def _options(cfg: TrackerConfig) -> Section:
    return plugins.section_options(cfg, _find(cfg).Options, KEY, f"tracker {cfg.name}")
