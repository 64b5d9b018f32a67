"""The summary that the command prints at the end of a sweep, from the records of its jobs."""

from __future__ import annotations

import sys
from collections import Counter

from rich.console import Console

from launch.run.log_warnings import warning_lines
from launch.sweep.job import short
from launch.sweep.job_records import Records
from launch.sweep.summary_table import summary, table, write_markdown

_NAMED = 5  # jobs that did not begin


def conclude(records: Records, problem: str = "", *, dry: bool = False) -> int:
    """Print the table of a sweep, what failed and what did not begin, and return the exit code.

    Args:
        problem: why the sweep ended early, if it did. dry: whether jobs only showed their plans, which have
            no table.
    """
    runs, waiting = records.runs(), records.not_begun()
    root = records.folder.parent.parent
    console = Console()
    if len(runs) > 1:
        summed = summary(runs)
        if len(summed.heads) > 1:
            console.print(table(summed))
        if summed.best:
            _print(console, summed.best)
        for label, reason in summed.failed:
            _print(console, f"failed: {label}: {reason}")
        if not dry:
            file = root / f"{records.folder.name}.md"
            write_markdown(file, summed)
            _print(console, f"sweep: {short(file)}")
    for line in warning_lines(Counter(text for run in runs for text in run.warnings)):
        _print(console, line)
    for overrides in waiting[:_NAMED]:
        _print(console, f"not begun: {' '.join(o.lstrip('+') for o in overrides)}")
    if len(waiting) > _NAMED:
        _print(console, f"not begun: and {len(waiting) - _NAMED} more")
    if problem or waiting:
        again = "; the same command continues the sweep" if runs or waiting else ""
        sys.stderr.write(f"{problem or 'some jobs have not begun'}{again}\n")
    codes = [run.code or 0 for run in runs]
    if problem and not runs:
        records.take_configuration()  # Hydra may refuse the jobs after it has written the file
        return 2
    return max([*codes, 1 if waiting or problem else 0])


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
