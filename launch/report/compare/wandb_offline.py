"""Read W&B's folders of offline runs without W&B's service."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.report.compare.runs import ComparedRun
from launch.report.compare.wandb_exports import flat_metrics, run_of, unwrapped
from launch.report.run_groups import Unusable
from launch.report.settings import flat

_BLOCK = 32768
"""Bytes of a block. The file is a log in LevelDB's format: blocks of fragments with 7 bytes of header."""
_HEADER = struct.Struct("<IHB")  # checksum, length, kind of fragment
_FULL, _LAST = 1, 4


def read_offline(folder: Path) -> ComparedRun:
    """Return the run of a folder `offline-run-…` with its configuration, history and summary.

    Raises:
        Unusable: the file ends before any metric, or its format is not known.
    """
    file = next(iter(sorted(folder.glob("*.wandb"))), None)
    if file is None:
        raise Unusable("no *.wandb file in it")
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    name, state = folder.name, "running"
    try:
        for record in _records(file):
            kind = record.WhichOneof("record_type")
            if kind in ("run", "config"):
                name = record.run.display_name or name
                update = record.run.config.update if kind == "run" else record.config.update
                config |= {key: unwrapped(value) for key, value in _values(update)}
            elif kind == "history":
                rows.append(flat_metrics(dict(_values(record.history.item))))
            elif kind == "summary":
                summary |= flat_metrics(dict(_values(record.summary.update)))
            elif kind == "exit":
                state = "finished" if record.exit.exit_code == 0 else "failed"
    except Exception as error:  # another release of W&B may write anything: compare the other runs
        reason = f"{file.name} cannot be read ({error}): `wandb sync` it and give the CSV of W&B's table"
        raise Unusable(reason) from error
    media = tuple(key.removesuffix("_type") for key in summary if key.endswith("/_type"))
    summary = {key: value for key, value in summary.items() if not key.startswith(media or ("/",))}
    rows = [row for row in rows if isinstance(row.get("step"), int)]
    return run_of(name, state, flat(config), summary, rows=rows)


def _values(items: Any) -> Iterator[tuple[str, Any]]:
    for item in items:
        yield "/".join(item.nested_key) or item.key, json.loads(item.value_json)


def _records(file: Path) -> Iterator[Any]:
    """Yield the whole records, without a last one that is still being written."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data, at, record = file.read_bytes(), 7, b""
    if data[:4] != b":W&B":
        raise ValueError("it does not begin as W&B's files do")
    while at + _HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        _, length, kind = _HEADER.unpack_from(data, at)
        if left < _HEADER.size or kind == 0:  # padding
            at += left
            continue
        fragment = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(fragment) < length:
            return
        at += _HEADER.size + length
        record += fragment
        if kind in (_FULL, _LAST):
            parsed = protocol.Record()  # type: ignore[attr-defined]
            parsed.ParseFromString(record)
            record = b""
            yield parsed
