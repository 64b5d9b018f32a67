"""What stands between an exception and the user: a message, an exit code, and where the traceback is.

`UNLEARN_DEBUG=1` shows the traceback too.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

from unlearn.errors import UserError, explained

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: of an error with its remedy, of any other, and of Ctrl-C outside a run."""


def outcome(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an exception; one without a remedy has its traceback in a file."""
    if isinstance(error, UserError):
        return str(error), REFUSED
    if isinstance(error, OSError) and (text := explained(error)) is not None:
        return text, REFUSED
    told = " ".join(str(error).split())
    head = f"{type(error).__name__}: {told[:_LONGEST]}" if told else type(error).__name__
    if os.environ.get("UNLEARN_DEBUG", "0") not in ("", "0"):
        return f"{''.join(traceback.format_exception(error))}{head}", FAILED
    place = getattr(error, "logged_in", None) or _written(error)
    if place is None:
        return f"{''.join(traceback.format_exception(error))}{head}", FAILED
    return f"{head}\nthe traceback is in {place} (UNLEARN_DEBUG=1 shows it here)", FAILED


_LONGEST = 500  # characters of a message
_NARROWEST = 10  # columns in which a line can be shown


def mark_logged(error: Exception, file: Path) -> None:
    """Note that the traceback of an exception is in this file."""
    error.logged_in = file  # type: ignore[attr-defined]


def is_logged(error: Exception) -> bool:
    """Whether an exception is in a log already."""
    return hasattr(error, "logged_in")


def guarded(call: Callable[[], int | None]) -> int:
    """Call, and return the exit code; whatever is raised is told on standard error."""
    try:
        return call() or 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except Exception as error:
        text, code = outcome(error)
        sys.stderr.write(f"{text}\n")
        return code


def tool(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Make the entry point of a `python -m …` command: it returns an exit code, whatever is raised in it."""

    @wraps(main)
    def entry(arguments: Sequence[str] | None = None) -> int:
        lasting_output()
        return guarded(lambda: main(arguments))

    return entry


def given_path(text: str) -> Path:
    """Read a path given to a tool; `~` is the home directory. A `type` of argparse."""
    return Path(text).expanduser()


def lasting_output() -> None:
    """Let this process outlive its terminal: what cannot be written, or not in its encoding, is no error."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="replace")
            setattr(sys, name, _Lasting(stream))
    if not (width := os.environ.get("COLUMNS", "80")).isdecimal() or int(width) < _NARROWEST:
        del os.environ["COLUMNS"]


class _Lasting:
    """Standard output or error; what is written after the other end was closed is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _written(error: Exception) -> Path | None:
    """A new file with the traceback; None where none can be written."""
    try:
        number, name = tempfile.mkstemp(prefix="unlearn-error-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return Path(name)
