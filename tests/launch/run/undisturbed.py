"""A small uninterrupted run, to compare with interrupted runs of the same configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.launch.children import Child, Nursery
from tests.launch.commands import Shown

# 10 questions to forget in batches of 4 are 3 steps an epoch, 12 in all; one thread, so that sums have one
# order.
TINY = [
    "model.nano.layers=1", "model.nano.hidden_size=32", "model.finetune.epochs=1",
    "dataset.options.authors=4", "dataset.forget=forget25", "method.epochs=4", "method.batch=4",
    "eval.max_new_tokens=4", "eval.limit=4", "eval.compare=false", "hardware.threads=1", "tracker=disabled",
    "checkpoint.every_steps=2",
]  # fmt: skip


class Place:
    """A folder with an uninterrupted run, in which other runs can be started."""

    def __init__(self, folder: Path, children: Nursery, arguments: list[str]) -> None:
        self.folder, self._children, self._arguments = folder, children, arguments
        self.undisturbed = folder / "undisturbed"
        self.done(self.undisturbed)

    def start(self, run: Path, *further: str, before: str | None = None) -> Child:
        """Start the run in this folder; `before` as in `Nursery.start`."""
        return self._children.start(
            self.folder, *self._arguments, *further, f"hydra.run.dir={run}", before=before
        )

    def done(self, run: Path, *further: str, before: str | None = None) -> Shown:
        shown = self.start(run, *further, before=before).ended()
        assert shown.code == 0, shown.err[-3000:]
        return shown


def outcome(run: Path) -> dict[str, Any]:
    """Return all numbers of a run except times and memory."""
    varying = {"run/seconds", "train/memory_gib", "memory_gib", "tokens_per_s"}
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"history": [{k: v for k, v in row.items() if k not in varying} for row in rows]}
    for file in sorted(run.rglob("results.json")):
        values = json.loads(file.read_text())
        found[str(file.relative_to(run))] = {k: v for k, v in values.items() if k not in varying}
    for file in sorted(run.rglob("*.parquet")):
        rows = pq.ParquetFile(file).read().to_pylist()
        found[str(file.relative_to(run))] = json.dumps(rows, default=str)  # NaN is NaN there
    return found


def assert_near(mine: Any, theirs: Any, name: str) -> None:
    """Compare numbers of fp32 passes in other portions; log-probabilities near 0 are differences of larger
    numbers."""
    if isinstance(theirs, str) and theirs.startswith("["):  # a table
        mine, theirs = json.loads(mine), json.loads(theirs)
    if isinstance(theirs, dict | list):
        assert len(mine) == len(theirs), name
        for key in theirs if isinstance(theirs, dict) else range(len(theirs)):
            assert_near(mine[key], theirs[key], f"{name}: {key}")
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5, nan_ok=True), name
    else:
        assert mine == theirs, name


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.relative_to(run)}/{name}": tensor
        for file in sorted(run.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(run: Path, other: Path, rounded: tuple[str, ...] = ()) -> None:
    """Compare all numbers bit for bit; those of files that begin with one of `rounded` but for rounding."""
    mine, theirs = outcome(run), outcome(other)
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        if name.startswith(rounded or ("-",)) or (rounded and name == "results.json"):
            assert_near(mine[name], values, name)
        else:
            assert mine[name] == values, name
    tensors, wanted = weights(run), weights(other)
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in wanted.items())
    assert not list(run.rglob("*.tmp"))
