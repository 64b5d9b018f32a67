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
        "import sys; from launch.cli import command; "
        "[command(a) for a in (['--help'], ['list'], ['list', 'method'], ['show', 'hardware=gpu'], "
        "['compare', '--help'])]; "
        "sys.exit(str(loaded) if (loaded := {'torch', 'transformers', 'wandb'} & set(sys.modules)) else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (0, "")
