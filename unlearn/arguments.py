"""Parse the arguments of subcommands of `unlearn`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """A parser whose help begins with examples."""

    def __init__(self, command: str, examples: Sequence[str], description: str, epilog: str = "") -> None:
        """
        command: the subcommand's name. examples: its arguments, as a user would write them.
        """
        super().__init__(
            prog=f"unlearn {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.examples = [f"{self.prog} {arguments}".rstrip() for arguments in examples]

    def format_help(self) -> str:
        return "".join(f"  {example}\n" for example in self.examples) + f"\n{super().format_help()}"


def path_argument(text: str) -> Path:
    """Parse a path (a `type` of argparse); `~` is the home directory."""
    return Path(text).expanduser()
