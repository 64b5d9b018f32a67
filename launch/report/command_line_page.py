"""Write docs/command-line.md from the help of the commands: `make docs`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from rich.console import Console

from launch.commands import SUBCOMMANDS
from launch.commands import help as helptext
from launch.config_groups import CONFIGS, groups

PAGE = CONFIGS.parent / "docs" / "command-line.md"
_WIDTH = 110
_HEAD = """\
<!-- Made by `make docs` from the help of the commands: edit that. -->
# Command line

`unlearn --help` also lists the options of all groups, which are [presets](presets.md), and all keys, which
are the [configuration](configuration.md).
"""
_CODES = """\
## Exit codes

| code | means |
| --- | --- |
| 0 | done |
| 1 | something failed; the message names the file with the traceback, and of a sweep the runs |
| 2 | refused, or failed with a message that says what to do |
| 75 | stopped by a signal after a checkpoint; the same command continues |
| 130 | interrupted outside of a run |
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD, f"## unlearn\n\n```text\n{usage()}\n```\n"]
    parts += [f"## {name}\n\n```text\n{text}\n```\n" for name, text in subcommands()]
    return "\n".join([*parts, _CODES])


def usage() -> str:
    """Return the help of `unlearn` up to the options of the first group."""
    text = io.StringIO()
    helptext.show(Console(file=text, width=_WIDTH))
    return text.getvalue().partition(f"\n{next(iter(groups()))}=\n")[0].strip()


def subcommands() -> Iterator[tuple[str, str]]:
    """Yield the name of each subcommand with its help."""
    for name, each in SUBCOMMANDS.items():
        with _terminal(_WIDTH):
            yield f"unlearn {name}", import_module(each.module).parser().format_help().strip()


@contextmanager
def _terminal(columns: int) -> Iterator[None]:
    """Let argparse wrap its help at this width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
