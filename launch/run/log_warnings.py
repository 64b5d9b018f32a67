"""Read the logs of runs for the terminal: warnings, and the error that ended a process."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.run.plan import Planned

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_WARNING = re.compile(r"\d{4}-\d\d-\d\d \S+ WARNING (?:launch|unlearn|eval)[\w.]*: (.*)")
_ERROR = re.compile(
    r"^\d{4}-\d\d-\d\d \S+ ERROR launch\.run\.worker: \w+: (.*?)(?=^\d{4}-\d\d-\d\d |^Traceback|\Z)",
    re.MULTILINE | re.DOTALL,
)
_SHOWN = 5


class Warned:
    """The distinct warnings of some runs, in the order of their first occurrence."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._log = ""

    def add(self, texts: Iterable[str]) -> None:
        """Add warnings."""
        self._texts |= dict.fromkeys(texts)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._texts)

    @contextmanager
    def of(self, run: Planned) -> Iterator[None]:
        """Collect the warnings that the processes of a run log in this block, on any machine."""
        before = {file: file.stat() for file in _logs(run)}
        try:
            yield
        finally:
            prefix = "" if run.role == "run" else f"{run.role}: "
            for file in _logs(run):
                old, now = before.get(file), file.stat()
                if old is not None and (old.st_size, old.st_mtime_ns) == (now.st_size, now.st_mtime_ns):
                    continue
                # The main process appends to its log; the others overwrite theirs.
                texts = _warnings(file, old.st_size if old is not None and file == run.rundir.log else 0)
                self.add(f"{prefix}{text}" for text in texts)
                self._log = str(run.rundir.log) if texts else self._log

    def lines(self) -> list[str]:
        """Return the lines that the command prints."""
        return warning_lines(Counter(self.texts), self._log)


def warning_lines(counts: Counter[str], where: str = "") -> list[str]:
    """Return a line for each of the first warnings, with the number of jobs if more than one."""
    lines = [
        f"warning{f' ({count} jobs)' if count > 1 else ''}: {text}"
        for text, count in list(counts.items())[:_SHOWN]
    ]
    rest = len(counts) - len(lines)
    return [*lines, f"… and {rest} more warnings in {where or 'run.log'}"] if rest > 0 else lines


def last_error(log: Path) -> str:
    """Return the error that ended a process, from its log; "" if there is none."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return errors[-1].strip() if (errors := _ERROR.findall(text)) else ""


def _logs(run: Planned) -> list[Path]:
    return [file for file in (run.rundir.log, *sorted(run.directory.glob("process-*.log"))) if file.is_file()]


def _warnings(file: Path, start: int) -> list[str]:
    """Return the first line of each warning of this program after a position in a log."""
    with file.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode(errors="replace")
    return [match[1] for line in text.splitlines() if (match := _WARNING.match(line)) is not None]
