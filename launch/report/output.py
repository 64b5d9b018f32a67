"""Write the files of a report or a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.redact import scrubbed
from unlearn.files import replacing


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
