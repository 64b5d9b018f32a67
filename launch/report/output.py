"""Write the files of a report or a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.redact import scrubbed
from launch.report.discover import LeftOut, left_out_lines
from unlearn.files import replacing

_MAX_NAMES = 8  # of runs that are left out for one reason


def csv_text(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def write_files(folder: Path, name: str, texts: Mapping[str, str]) -> list[Path]:
    """Write `<name>.<ending>` for each text, each file whole or not at all, and return the paths.

    Home directory and secrets are removed, except from a page (`html`): `render` removes them from its data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for ending, text in texts.items():
        file = folder / f"{name}.{ending}"
        with replacing(file) as temporary:
            temporary.write_text(text if ending == "html" else scrubbed(text), encoding="utf-8")
        files.append(file)
    return files


def show_files(console: Console, files: Iterable[Path], left_out: Sequence[LeftOut]) -> None:
    """Print which runs are left out, and the files that were written."""
    for line in left_out_lines(left_out, _MAX_NAMES):
        console.print(line, style="yellow", markup=False)
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)
