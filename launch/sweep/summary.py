"""What the command tells at the end of a sweep, from what its jobs left."""

from __future__ import annotations

import sys
from collections import Counter

from rich.console import Console

from launch.run.log_warnings import told
from launch.sweep.job import short
from launch.sweep.job_records import Records
from launch.sweep.summary_table import summary, table, write_markdown

_TOLD = 5  # jobs without a word that are named


def conclude(records: Records, problem: str = "") -> int:
    """Print the table of a sweep, what failed and what did not begin; returns the exit code of it all.

    `problem` is why the sweep ended early, if it did.
    """
    made, waiting = records.made(), records.not_begun()
    root = records.folder.parent.parent
    for left in ("multirun.yaml", "optimization_results.yaml"):  # Hydra's, of this sweep alone
        if (root / left).is_file():
            (root / left).replace(records.folder / left)
    console = Console()
    if len(made) > 1:
        found = summary(made)
        file = root / f"{records.folder.name}.md"
        write_markdown(file, found)
        if len(found.heads) > 1:
            console.print(table(found))
        if found.best:
            _say(console, found.best)
        for label, reason in found.failed:
            _say(console, f"failed: {label}: {reason}")
        _say(console, f"sweep: {short(file)}")
    for line in told(Counter(text for run in made for text in run.warnings)):
        _say(console, line)
    for overrides in waiting[:_TOLD]:
        _say(console, f"not begun: {' '.join(o.lstrip('+') for o in overrides)}")
    if len(waiting) > _TOLD:
        _say(console, f"not begun: and {len(waiting) - _TOLD} more")
    if problem or waiting:
        again = "; the same command goes on where it stands" if made or waiting else ""
        sys.stderr.write(f"{problem or 'some jobs have not begun'}{again}\n")
    codes = [run.code or 0 for run in made]
    if problem and not made:
        return 2
    return max([*codes, 1 if waiting or problem else 0])


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
