"""`unlearn --help`: list the groups with their options, and every key of the schema."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Console

from launch.commands import help_lines
from launch.commands.keys import Key, keys_of
from launch.commands.plug_ins import KINDS, SECTIONS
from launch.config_groups import describe, groups
from unlearn.config import RunConfig
from unlearn.errors import ConfigError
from unlearn.plugins import Kind

_HEAD = """\
unlearn [group=option …] [key=value …]

Compose and execute a run: find or build target and retain model, unlearn, evaluate, report.
The same command again resumes an interrupted run or sweep, and returns at once when it is complete.

  unlearn                                       NPO on the embedded authors with the nano model
  unlearn method=satimp dataset.forget=forget05
  unlearn -m method=npo,satimp,wga seed=0,1,2   a sweep: nine runs, one after the other, and their table
  unlearn -m … hydra/launcher=joblib            the same, two at a time, or as many as fill the GPUs
  unlearn -m … hydra/launcher=slurm             the same, as one Slurm job array
  unlearn -m experiment=satimp-study            a sweep that a recipe describes
  unlearn -m experiment=optuna-npo              a search: Optuna chooses the trials (hydra/sweeper=optuna)
  unlearn dry_run=true method=npo               show the plan with steps, tokens and memory
  unlearn --cfg job                             print the whole configuration, run nothing
  unlearn --config-dir DIR method=mine          with options of your own, in DIR/method/mine.yaml
  unlearn --version -v                          print versions, and which kernels are used on this processor
  eval "$(unlearn -sc install=bash)"            let the shell complete groups, options and keys
"""


def show(console: Console) -> None:
    """Print the help."""
    lines = [_HEAD, "subcommands (each with --help)", *help_lines(), ""]
    for group, options in groups().items():
        width = max(map(len, options))
        lines += [f"{group}=", *(f"  {option:{width}}  {describe(group, option)}" for option in options), ""]
    lines.append("keys (any of them can be set: key=value; in brackets the default of the schema)")
    lines += _key_lines()
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _key_lines() -> Iterator[str]:
    """Yield a line for each key of the schema, after those of a section the options of its plug-ins."""
    for section, keys in groupby(keys_of(RunConfig), key=lambda key: key.name.partition(".")[0]):
        yield from (_line(key) for key in keys)
        if section in SECTIONS:
            kind = KINDS[section].kind
            for name in kind.listed():
                yield from _option_lines(kind, section, name)


def _option_lines(kind: Kind, section: str, name: str) -> Iterator[str]:
    try:
        options = kind.find(name, f"{section}.name={name}").Options
    except ConfigError as error:  # of an installed package: the others are shown all the same
        yield f"  {'; '.join(error.problems)}"
        return
    yield from (_line(key, f"{name}: ") for key in keys_of(options, f"{section}."))


def _line(key: Key, owner: str = "") -> str:
    return f"  {key.name} [{key.default or 'set by the option'}] {owner}{key.text or key.type}"
