"""Begin a process, and report exceptions to the user: a message, an exit code, the file with the traceback.

`UNLEARN_DEBUG=1` also shows the traceback.
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
"""Exit codes: of an error with a known fix, of any other error, and of Ctrl-C outside a run."""


def outcome(error: Exception) -> tuple[str, int]:
    """Return the message and exit code of an exception; the traceback of an unexpected one is in a file."""
    if isinstance(error, UserError):
        return str(error), REFUSED
    if isinstance(error, OSError) and (text := explained(error)) is not None:
        return text, REFUSED
    message = " ".join(str(error).split())
    head = f"{type(error).__name__}: {message[:_LONGEST]}" if message else type(error).__name__
    if os.environ.get("UNLEARN_DEBUG", "0") not in ("", "0"):
        return f"{''.join(traceback.format_exception(error))}{head}", FAILED
    file = getattr(error, "logged_in", None) or _write_traceback(error)
    if file is None:
        return f"{''.join(traceback.format_exception(error))}{head}", FAILED
    return f"{head}\nthe traceback is in {file} (UNLEARN_DEBUG=1 shows it here)", FAILED


_LONGEST = 500  # characters of a message
_NARROWEST = 10  # columns of a terminal


def mark_logged(error: Exception, file: Path) -> None:
    """Note that the traceback of an exception is in this file."""
    error.logged_in = file  # type: ignore[attr-defined]


def is_logged(error: Exception) -> bool:
    """Whether the traceback of an exception is already in a log."""
    return hasattr(error, "logged_in")


def guarded(call: Callable[[], int | None]) -> int:
    """Call a function and return the exit code; report exceptions on standard error."""
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
    """Make the entry point of a subcommand, which returns an exit code and raises no error."""

    @wraps(main)
    def entry(arguments: Sequence[str] | None = None) -> int:
        lasting_output()
        return guarded(lambda: main(arguments))

    return entry


def lasting_output() -> None:
    """Keep this process alive without its terminal: ignore output that cannot be written or encoded."""
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
    """Standard output or error that drops what is written after the other end was closed."""

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
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _write_traceback(error: Exception) -> Path | None:
    """Write the traceback to a new file; None where none can be written."""
    try:
        number, name = tempfile.mkstemp(prefix="unlearn-error-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return Path(name)
