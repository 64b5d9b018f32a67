"""From a typed configuration to what will be done: checked, planned and looked at, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launch.inspection import inspect
from launch.run.plan import Plan, make_plan
from launch.validate import check, doubts
from unlearn.config import RunConfig


@dataclass(frozen=True)
class Resolved:
    """A configuration that can run: the runs it takes, and warnings for the user."""

    config: RunConfig
    plan: Plan
    warnings: tuple[str, ...]


def resolve(config: RunConfig, directory: Path | None = None, *, searched: bool = False) -> Resolved:
    """Check a configuration, plan its runs and read their data and model files; no weights are loaded.

    Args:
        config: The typed configuration.
        directory: Replaces the directory that follows from the fingerprint.
        searched: Whether the run is a trial of a search, which needs a goal.

    Raises:
        UserError: the configuration cannot run; everything that is wrong, by dotted name.
    """
    check(config)
    if searched:
        from launch.sweep.objective import check_goal

        check_goal(config)
    plan = make_plan(config, directory)
    return Resolved(config, plan, (*doubts(config, searched=searched), *inspect(config, plan)))
