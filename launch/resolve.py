"""Resolve a typed configuration once: check it, plan its runs, read data and model files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launch.inspection import inspect
from launch.run.complete import without_idle
from launch.run.config_file import check_folder
from launch.run.plan import Plan, make_plan
from launch.validate import check, warnings_of
from unlearn.config import RunConfig


@dataclass(frozen=True)
class Resolved:
    """A configuration that can run, with the plan of its runs and warnings for the user.

    The plan has no models that are missing and needed by no run which is still to be made.
    """

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
        UserError: the configuration cannot run; all problems, by dotted name.
    """
    check(config)
    if directory is not None:
        check_folder(directory)
    if searched:
        from launch.sweep.objective import check_goal

        check_goal(config)
    plan = without_idle(make_plan(config, directory))
    return Resolved(config, plan, (*warnings_of(config, searched=searched), *inspect(config, plan)))
