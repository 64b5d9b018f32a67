"""Read what the G-effect probe left in a run directory: rows of the history, tables of each step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.report.traces import Row, number
from unlearn.run_dir import RunDir

PREFIX = "geffect/"
Tables = Mapping[int, pa.Table]
"""The tables of one kind by step, in order."""

# Rows that go to the tracker; the files have all.
MAX_ROWS = {"examples": 200, "layers": 600, "grid": 1000}


def effect_rows(history: Sequence[Row]) -> list[Row]:
    """Return the rows of the steps that were probed."""
    return [row for row in history if any(key.startswith(PREFIX) for key in row)]


def probed_steps(run_dir: Path) -> dict[int, Path]:
    """Return the folder of each step with tables, by step."""
    folders = {}
    for folder in RunDir(run_dir).geffect.glob("step-*"):
        name = re.fullmatch(r"step-(\d+)", folder.name)
        if name is not None and folder.is_dir():
            folders[int(name[1])] = folder
    return dict(sorted(folders.items()))


def tables(
    run_dir: Path, kind: str, *, limit: int | None = None, columns: Collection[str] | None = None
) -> dict[int, pa.Table]:
    """Return the tables of one kind by step: `limit` of the steps, evenly thinned, the first and last kept.

    columns: read only these, if the table has them.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    files = {step: folder / f"{kind}.parquet" for step, folder in probed_steps(run_dir).items()}
    present = [step for step, file in files.items() if file.is_file()]
    return {step: _read(files[step], columns) for step in thinned(present, limit)}


def layers_of_groups(run_dir: Path) -> dict[str, int]:
    """Return the number of layers in each group of layers; {} where there is no table of parameters.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    for table in tables(run_dir, "layers", limit=1, columns=("group", "layer")).values():
        pairs = {(row["group"], row["layer"]) for row in table.to_pylist() if row["layer"] is not None}
        return dict(sorted(Counter(group for group, _ in pairs).items()))
    return {}


def thinned(items: Sequence[Any], limit: int | None) -> list[Any]:
    """Return at most so many of the items, evenly, the first and the last among them."""
    if limit is None or len(items) <= limit:
        return list(items)
    if limit < 2:
        return list(items[len(items) - limit :])
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def tracked(run_dir: Path) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Return name, columns and rows of the tracker's tables, of the last step that was probed.

    The strongest rows come first, at most `MAX_ROWS` of a table: examples and pairs by the size of the
    effect, parameters by the size of the effect on the retain risk.
    """
    shown = []
    for kind, by in (("examples", "objective"), ("layers", "retain"), ("grid", "effect")):
        for step, table in tables(run_dir, kind, limit=1).items():
            rows = strongest(table.to_pylist(), by, MAX_ROWS[kind])
            cells = [[step, *(row[name] for name in table.column_names)] for row in rows]
            shown.append((f"geffect/{kind}", ["step", *table.column_names], cells))
    return shown


def strongest(rows: Sequence[Mapping[str, Any]], by: str, limit: int) -> list[Mapping[str, Any]]:
    """Return the rows with the largest absolute value, those without one last; ties keep their order."""
    return sorted(rows, key=lambda row: -abs(value) if (value := number(row.get(by))) else 0.0)[:limit]


def _read(file: Path, columns: Collection[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            return opened.read(columns=[name for name in names if columns is None or name in columns])
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{file} cannot be read as parquet: {error}; remove it, or run with the probe again"
        ) from error
