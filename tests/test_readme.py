"""The front page is true: its groups, its tree and its commands."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from itertools import filterfalse

import pytest

from launch.commands import SUBCOMMANDS
from launch.compose import checked, compose_run, force_overrides
from launch.report.groups_table import page
from launch.validate import check
from tests.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", README, re.S)
        for line in block.splitlines()
    ]
    return [shlex.split(line) for line in lines if re.match(r"(\.venv/bin/)?unlearn ", line)]


def is_subcommand(command: list[str]) -> bool:
    return command[1:2] != [] and command[1] in SUBCOMMANDS


@pytest.mark.parametrize("command", [*filter(is_subcommand, commands())], ids=" ".join)
def test_every_subcommand_takes_its_arguments(command):
    import_module(SUBCOMMANDS[command[1]].module).parser().parse_args(command[2:])


@pytest.mark.parametrize("command", [*filterfalse(is_subcommand, commands())], ids=" ".join)
def test_every_command_composes(command):
    overrides = force_overrides([word for word in command[1:] if not word.startswith("-")])
    config = checked(compose_run(overrides), overrides)
    if "DIR" not in " ".join(command):  # stands for a folder of the reader's
        elsewhere = "hydra/launcher=slurm" in command  # where there may be GPUs
        check(config.model_copy(update={"dry_run": config.dry_run or elsewhere}))


def test_the_table_of_groups_is_current():
    assert page() == README, "`make docs` writes the table of groups anew"


def test_the_tree_is_true():
    tree = re.search(r"## Where things are\n\n```\n(.*?)```", README, re.S)
    assert tree is not None
    named = {line.split("/")[0] for line in tree.group(1).splitlines()}
    assert named == {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir()
        and path.name in named | {"configs", "unlearn", "eval", "launch", "tests", "benches", "docs"}
    }


def test_the_makefile_has_what_the_page_names():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets | {"and"}
