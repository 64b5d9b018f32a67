"""Remove the home directory's path and secrets from logs, reports and dashboards."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from unlearn.paths import below_home, home_folders

_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(?<=://)([^\s/:@]+):[^\s/@]+@")
_SHORTEST = 12  # a shorter value may be a word like any other


def scrubbed(text: str) -> str:
    """Replace the home directory by `~`, the values of variables named like secrets by `[NAME]`, and the
    password of an address (`scheme://user:password@host`) by `[password]`."""
    text = _IN_ADDRESS.sub(r"\1:[password]@", text)
    for name, value in _secrets():
        text = text.replace(value, f"[{name}]")
    for home in home_folders():
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def secrets_in(text: str) -> list[str]:
    """Return the variables named like secrets whose values are part of a text; paths are none."""
    return [name for name, value in _secrets() if value in text and not os.path.exists(value)]


def _secrets() -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRET.search(name)
    ]


def cleaned(value: Any) -> Any:
    """Apply `scrubbed` to every text in a value, through mappings and lists."""
    return _through(value, scrubbed)


def portable(value: Any) -> Any:
    """Write paths below the home directory as `~/…`; `expanded` undoes it."""
    return _through(value, below_home)


def expanded(value: Any) -> Any:
    """Expand `~/…` to a path below the current user's home directory."""
    return _through(value, lambda text: os.path.expanduser(text) if text.startswith("~/") else text)


class ScrubbedFormatter(logging.Formatter):
    """A formatter that scrubs log records, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


class Scrubbing(logging.Filter):
    """A filter that scrubs the log of another package, which has its own handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrubbed(record.getMessage()), ()
        return True


class ScrubbedStream:
    """A text stream that scrubs each text that is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrubbed(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def scrub_output() -> None:
    """Scrub standard output and error of this process from now on."""
    sys.stdout, sys.stderr = ScrubbedStream(sys.stdout), ScrubbedStream(sys.stderr)


def _through(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _through(part, change) for key, part in value.items()}
    return [_through(part, change) for part in value] if isinstance(value, list | tuple) else value
