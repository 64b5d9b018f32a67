"""The subcommands of `unlearn`: a name, the function behind it, a line of help. None is imported here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from launch.config_groups import groups
from unlearn.config import RunConfig
from unlearn.errors import UserError, did_you_mean
from unlearn.garbage import resume_collection


@dataclass(frozen=True)
class Subcommand:
    """A module with `main(arguments)`, which returns an exit code, and `parser()`; and what it does."""

    module: str
    help: str


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "list": Subcommand("launch.commands.listing", "groups with their options, kinds of plug-ins"),
    "show": Subcommand(
        "launch.commands.show", "one option: what it does, its values and their places, BibTeX"
    ),
    "new": Subcommand("launch.commands.new", "files for a method, a benchmark or a dataset of your own"),
    "schema": Subcommand("launch.commands.schema", "JSON Schema of the configuration, for editors"),
    "memory": Subcommand("launch.memory.command", "memory of a run with each preset of hardware"),
    "compare": Subcommand("launch.report.compare.command", "runs compared by their results: tables, a page"),
    "geffect": Subcommand("launch.report.geffect.command", "runs compared by their G-effect"),
    "meta": Subcommand("launch.report.meta.command", "metrics on trial: which of them can be trusted"),
    "claims": Subcommand(
        "launch.report.claims.command", "claims of the papers tried on runs: one page of verdicts"
    ),
    "rescore": Subcommand("eval.benchmarks.tofu.rescore", "metrics of a published TOFU log, without a model"),
    "sync": Subcommand("launch.tracking.sync", "send what was logged offline to W&B"),
    "workspace": Subcommand("launch.tracking.workspace", "the saved view of a study in W&B"),
}


def run(arguments: Sequence[str]) -> int | None:
    """Run the subcommand that the first argument names; returns its exit code, None where it names none.

    Raises:
        UserError: the first argument is a word, but no subcommand.
    """
    if not arguments or not re.fullmatch(r"[A-Za-z][\w-]*", arguments[0]):
        return None
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        if name in {*RunConfig.model_fields, *groups()}:
            return None  # a setting without its value
        near = did_you_mean(name, SUBCOMMANDS)
        raise UserError(
            f"{name}: there is no such subcommand{near}; write a setting as key=value; unlearn --help has all"
        )
    main: Callable[[Sequence[str]], int] = import_module(SUBCOMMANDS[name].module).main
    resume_collection()
    try:
        return main(rest)
    except SystemExit as stopped:  # argparse, after its help or a usage error
        return int(stopped.code or 0)


def help_lines() -> list[str]:
    """Return a line for each subcommand."""
    width = max(map(len, SUBCOMMANDS))
    return [f"  unlearn {name:{width}}  {each.help}" for name, each in SUBCOMMANDS.items()]
