"""Whole runs that are out of memory: they go on with smaller portions, or all processes begin again."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.launch.children import Nursery
from tests.launch.run.undisturbed import assert_same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's"),
]

SMALL = [
    "method=finetune", "method.full.objective=tests.launch.run.hungry", "method.batch=16", "method.steps=3",
    "dataset.options.authors=10", "model.nano.layers=1", "model.nano.hidden_size=32", "model.nano.heads=2",
    "eval=none", "hardware.threads=1", "tracker=disabled",
]  # fmt: skip


@pytest.mark.parametrize(("processes", "zero"), [(1, 0), (2, 2), (2, 3)])
def test_it_ends_as_if_it_had_begun_with_the_smaller_portion(children: Nursery, tmp_path, processes, zero):
    def done(run: Path, tokens: int, before: str | None = None) -> str:
        hardware = [f"hardware.processes={processes}", f"hardware.zero={zero}"]
        child = children.start(
            tmp_path, *SMALL, *hardware, f"hardware.micro_tokens={tokens}", f"hydra.run.dir={run}",
            before=before,
        )  # fmt: skip
        shown = child.ended()
        assert shown.code == 0, shown.err[-3000:]
        return shown.out + shown.err

    halved, small = tmp_path / "halved", tmp_path / "small"
    first = 1024 if processes == 1 else 256  # each start of two processes takes seconds
    said = done(halved, first, "tests.launch.run.hungry:limit")
    kept = json.loads((halved / "memory.json").read_text())
    portion = kept["fitting"]["micro_tokens"]
    assert portion < first
    log = said + (halved / "run.log").read_text()
    assert f"continuing with hardware.micro_tokens={portion}" in re.sub(r"\s+", " ", log)
    # Where a pass has collectives the run has begun again.
    assert (kept["restarts"] > 0) == (zero == 3 or (zero == 2 and processes == 2))

    done(small, portion)
    (halved / "memory.json").unlink()
    assert_same(halved, small)
