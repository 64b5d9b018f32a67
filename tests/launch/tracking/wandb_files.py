"""Reading the files of an offline W&B run."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; a record never crosses a block, it is cut into FIRST, MIDDLE and LAST pieces instead
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    at, whole = 7, b""
    while at + 7 <= len(data):
        room = BLOCK - at % BLOCK
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if room < 7 or kind == 0:  # padding up to the next block
            at += room
            continue
        if at + 7 + length > len(data):  # still being written
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            record = protocol.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            whole = b""
            yield record


def finished_records(path: Path) -> list[Any]:
    """W&B's own process may still be writing for a moment after `finish`; the exit comes last."""
    for _ in range(100):
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} never got its exit record")


def read_run(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "metrics": [], "run": None}
    out["artifacts"] = []
    for record in finished_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            out["run"] = record.run
            out["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            out["history"].append(
                {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            )
        elif kind == "summary":
            for item in record.summary.update:
                out["summary"]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            out["artifacts"].append(record.request.log_artifact.artifact)
        elif kind == "artifact":
            out["artifacts"].append(record.artifact)
        elif kind == "metric":
            out["metrics"].append((record.metric.name or record.metric.glob_name, record.metric.step_metric))
    return out
