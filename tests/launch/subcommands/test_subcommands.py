"""Subcommands are found by their first word; their help begins with examples that they take."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from launch.commands import SUBCOMMANDS
from tests.launch.commands import done, unlearn
from tests.launch.report.compare_files import write_run


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_begins_with_examples_that_can_be_parsed(tmp_path, name):
    lines = done(tmp_path, name, "--help").out.splitlines()
    examples = lines[: lines.index("")]
    assert examples[0].startswith(f"  unlearn {name}")
    assert lines[lines.index("") + 1].startswith(f"usage: unlearn {name} ")
    for example in examples:
        assert import_module(SUBCOMMANDS[name].module).parser().parse_args(shlex.split(example)[2:])


def test_the_help_of_the_command_lists_them(tmp_path):
    shown = done(tmp_path, "--help").out
    for name, each in SUBCOMMANDS.items():
        assert f"unlearn {name} " in shown
        assert each.help in shown


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "compre",
            "compre: there is no such subcommand (did you mean compare?); write a setting as key=value",
        ),
        ("rescorer", "did you mean rescore?"),
        ("frobnicate", "(known: claims, compare, geffect,"),
        ("method", "method: write a setting as key=value"),
    ],
)
def test_a_word_that_is_no_subcommand_is_refused(tmp_path, word, says):
    shown = unlearn(tmp_path, word)
    assert shown.code == 2
    assert says in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("compare", "none", "--out", "c"), 2, "none: no such directory, file or pattern"),
        (("compare", "none"), 2, "the following arguments are required: --out"),
        (("geffect", "none", "--out", "c"), 2, "none: no such directory, archive or pattern"),
        (("rescore", "none.json"), 2, "none.json: there is no such file"),
        (("memory", "model=nanoo"), 2, "model=nanoo"),
        (("sync", "none"), 2, "none"),
        (("workspace", "--project", "p"), 2, "the following arguments are required: --entity"),
    ],
)
def test_what_a_tool_refuses_is_the_exit_code_of_the_command(tmp_path, arguments, code, says):
    shown = unlearn(tmp_path, *arguments)
    assert (shown.code, says in shown.err) == (code, True), shown.err


def test_runs_are_compared(tmp_path):
    for beta in (0.1, 0.5):
        write_run(tmp_path / "runs" / f"npo-{beta}", results={"tofu/model_utility": beta})
    shown = done(tmp_path, "compare", "runs", "--out", "comparison")
    assert str(Path("comparison", "compare.html")) in shown.out


@pytest.mark.slow
def test_light_subcommands_load_neither_torch_nor_wandb(tmp_path):
    code = (
        "import sys; from launch.cli import command; import launch.report.geffect.command; "
        "[command(a) for a in (['--help'], ['list'], ['list', 'method'], ['show', 'hardware=gpu'], "
        "['compare', '--help'])]; "
        "loaded = lambda *names: [name for name in names if sys.modules.get(name)]; "
        "assert not loaded('torch', 'transformers', 'wandb'), loaded('torch', 'transformers', 'wandb'); "
        # Variants import torch; what torchao says on standard error where it is imported is not for this.
        "command(['compare', 'runs', '--out', 'comparison']); "
        "sys.exit(str(loaded('torchao', 'wandb') or '') or 0)"
    )
    write_run(tmp_path / "runs" / "npo", results={"tofu/model_utility": 0.5})
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (0, "")
