"""`unlearn --help`: list the groups with their options, and every key of the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from rich.console import Console

from launch.commands import help_lines
from launch.config_groups import describe, groups
from launch.tracking.trackers import TRACKERS
from unlearn.config import ProbeConfig, RunConfig, TrackerConfig
from unlearn.errors import ConfigError
from unlearn.plugins import Kind
from unlearn.probes import PROBES

PLUG_INS: Mapping[type[BaseModel], Kind] = {ProbeConfig: PROBES, TrackerConfig: TRACKERS}
"""The sections whose further keys are options of a plug-in."""
REQUIRED = "set by the option"
"""In place of the default of a key that has none."""
_HEAD = """\
unlearn [group=option …] [key=value …]

Compose and execute a run: find or build target and retain model, unlearn, evaluate, report.
The same command again resumes an interrupted run or sweep, and returns at once when it is complete.

  unlearn                                       NPO on the embedded authors with the nano model
  unlearn method=satimp dataset.forget=forget05
  unlearn -m method=npo,satimp,wga seed=0,1,2   a sweep: nine runs, one after the other, and their table
  unlearn -m … hydra/launcher=joblib            the same, two at a time (hydra.launcher.n_jobs=…)
  unlearn -m … hydra/launcher=slurm             the same, as one Slurm job array
  unlearn -m experiment=satimp-study            a sweep that a recipe describes
  unlearn -m experiment=optuna-npo              a search: Optuna chooses the trials (hydra/sweeper=optuna)
  unlearn dry_run=true method=npo               show the plan with steps, tokens and memory
  unlearn --cfg job                             print the whole configuration, run nothing
"""


def show(console: Console) -> None:
    """Print the help."""
    lines = [_HEAD, "subcommands (each with --help)", *help_lines(), ""]
    for group, options in groups().items():
        width = max(map(len, options))
        lines += [f"{group}=", *(f"  {option:{width}}  {describe(group, option)}" for option in options), ""]
    lines.append("keys (any of them can be set: key=value; in brackets the default of the schema)")
    lines += [f"  {key} [{default}] {text}" for key, default, text in rows(RunConfig, "")]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    """Return name, default and description of each key of a section, and of the sections in it."""
    found = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += rows(annotation, f"{prefix}{name}.")
            if (kind := PLUG_INS.get(annotation)) is not None:
                found += _options(kind, f"{prefix}{name}.")
        else:
            default = REQUIRED if field.is_required() else json.dumps(field.default)
            found.append((f"{prefix}{name}", default, field.description or _kind(annotation)))
    return found


def _options(kind: Kind, prefix: str) -> list[tuple[str, str, str]]:
    """Return the options of each plug-in of a kind, with its name."""
    listed = []
    for name in kind.listed():
        try:
            options = rows(kind.find(name, f"{prefix}name={name}").Options, prefix)
        except ConfigError as error:  # of an installed package: the others are shown all the same
            options = [(f"{prefix}name", name, "; ".join(error.problems))]
        listed += [(key, default, f"{name}: {text}") for key, default, text in options]
    return listed


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else ""
