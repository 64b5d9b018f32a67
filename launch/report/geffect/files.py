"""What the G-effect probe left in the directory of a run: rows of the history, tables of each step."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.report.traces import Row, number

PREFIX = "geffect/"
KINDS = ("layers", "examples", "tokens", "grid")
Tables = Mapping[int, pa.Table]
"""A table of each step that has one, by step in order."""

# Of what goes to the tracker; everything is in the files.
MOST_ROWS = {"examples": 200, "layers": 600, "grid": 1000}


def effect_rows(history: Sequence[Row]) -> list[Row]:
    """The rows of steps at which the probe looked."""
    return [row for row in history if any(key.startswith(PREFIX) for key in row)]


def looks(run_dir: Path) -> dict[int, Path]:
    """The folder of each step with tables, by step."""
    found = {}
    for folder in run_dir.glob("geffect/step-*"):
        name = re.fullmatch(r"step-(\d+)", folder.name)
        if name is not None and folder.is_dir():
            found[int(name[1])] = folder
    return dict(sorted(found.items()))


def tables(
    run_dir: Path, kind: str, *, most: int | None = None, columns: Collection[str] | None = None
) -> dict[int, pa.Table]:
    """The tables of one kind by step: `most` of the steps, evenly thinned with both ends kept.

    columns: read only these, as far as they are there.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    files = {step: folder / f"{kind}.parquet" for step, folder in looks(run_dir).items()}
    present = [step for step, file in files.items() if file.is_file()]
    return {step: _read(files[step], columns) for step in thinned(present, most)}


def thinned(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most so many of them, evenly, the first and the last among them."""
    if most is None or len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[len(items) - most :])
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def tracked(run_dir: Path) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Name, columns and rows of what the tracker shows of the last step looked at.

    The strongest come first: examples and pairs by the size of the effect, parameters by that on the retain
    risk; at most `MOST_ROWS` of each.
    """
    made = []
    for kind, by in (("examples", "objective"), ("layers", "retain"), ("grid", "effect")):
        found = tables(run_dir, kind, most=1)
        for step, table in found.items():
            rows = strongest(table.to_pylist(), by, MOST_ROWS[kind])
            cells = [[step, *(row[name] for name in table.column_names)] for row in rows]
            made.append((f"geffect/{kind}", ["step", *table.column_names], cells))
    return made


def strongest(rows: Sequence[Mapping[str, Any]], by: str, most: int) -> list[Mapping[str, Any]]:
    """The rows with the largest absolute value, those without one last; ties in their own order."""
    return sorted(rows, key=lambda row: -abs(value) if (value := number(row.get(by))) else 0.0)[:most]


def _read(file: Path, columns: Collection[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            return opened.read(columns=[name for name in names if columns is None or name in columns])
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{file} cannot be read as parquet: {error}; remove it, or run with the probe again"
        ) from error
