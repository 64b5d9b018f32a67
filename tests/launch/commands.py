"""The command as a user gives it: in this process, which has its imports already, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import absl.logging

from launch.cli import command
from tests.paths import ROOT

# Hydra's logging and submitit's import close the handlers of all loggers. absl's would close pytest's own
# standard error with it, which is not the standard error of a command that runs here.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

ENVIRONMENT = {"WANDB_MODE": "offline", "COLUMNS": "200"}


@dataclass(frozen=True)
class Shown:
    """What a user sees of a command when it has ended."""

    code: int
    out: str
    err: str


def unlearn(cwd: Path, *arguments: str) -> Shown:
    """The command in this process, whose environment stays as it was."""
    out, err, argv, before = io.StringIO(), io.StringIO(), sys.argv, dict(os.environ)
    try:
        os.environ |= ENVIRONMENT
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command([*arguments])
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
    return Shown(code, out.getvalue(), err.getvalue())


def done(cwd: Path, *arguments: str) -> Shown:
    shown = unlearn(cwd, *arguments)
    assert shown.code == 0, shown.err[-3000:]
    return shown


def started(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, just begun."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *arguments], cwd=cwd, text=True,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], limit: float = 600) -> Shown:
    out, err = process.communicate(timeout=limit)
    return Shown(process.returncode, out, err)
