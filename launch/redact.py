"""What must not get into logs, reports and dashboards: the home directory's path and secrets."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_SHORTEST = 12  # a shorter value may be a word like any other


def scrubbed(text: str) -> str:
    """The text with the home directory as `~`, and what a variable named as a secret holds as `[NAME]`."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name):
            text = text.replace(value, f"[{name}]")
    for home in _homes():
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def cleaned(value: Any) -> Any:
    """The same with every text in it `scrubbed`, through mappings and lists."""
    return _through(value, scrubbed)


def portable(value: Any) -> Any:
    """The same with paths below the home directory as `~/…`, which `expanded` undoes."""
    return _through(value, _short)


def expanded(value: Any) -> Any:
    """The same with `~/…` as a path below the home directory of who reads it."""
    return _through(value, lambda text: os.path.expanduser(text) if text.startswith("~/") else text)


class ScrubbedFormatter(logging.Formatter):
    """Also of tracebacks, which name the files of the program."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


class Scrubbing(logging.Filter):
    """For the log of another package, whose handlers are its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrubbed(record.getMessage()), ()
        return True


class ScrubbedStream:
    """A stream of text, standard error say; what is written is `scrubbed` piece by piece."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrubbed(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def scrub_output() -> None:
    """From now on what this process writes to its standard output and error goes without private things."""
    sys.stdout, sys.stderr = ScrubbedStream(sys.stdout), ScrubbedStream(sys.stderr)


def _homes() -> list[str]:
    """The home directory by its name and, where that is a link, by where it leads; longest first."""
    home = os.path.expanduser("~")  # as it is where neither HOME nor the system's users tell it
    found = {home, os.path.realpath(home)} if home != "~" else set()
    return sorted((path for path in found if len(path) > 1), key=len, reverse=True)


def _short(text: str) -> str:
    for home in _homes():
        if text == home or text.startswith(f"{home}/"):
            return f"~/{text[len(home) :].lstrip('/')}"
    return text


def _through(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _through(part, change) for key, part in value.items()}
    return [_through(part, change) for part in value] if isinstance(value, list | tuple) else value
