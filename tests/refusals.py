"""A table of bad inputs: what is typed, what the message must name, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.launch.commands import unlearn


@dataclass(frozen=True)
class Refused:
    """One input that a command refuses: each of `says` stands in what it writes to standard error."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2


def check_refusal(cwd: Path, case: Refused) -> None:
    """The command ends with the case's code and words, without a traceback, and leaves no run behind."""
    shown = unlearn(cwd, *case.arguments)
    assert shown.code == case.code, shown.out[-2000:] + shown.err[-2000:]
    for piece in case.says:
        assert piece in shown.err, f"{piece!r} is not in: {shown.err[-2000:]}"
    assert "Traceback" not in shown.err
    assert not list(cwd.glob("runs/*/results.json")), "something was made before it was refused"
