"""Runs that an error ends in the process of the command: what the next run in it finds."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from launch.compose import checked, compose_run, force_overrides
from launch.run.config_file import read_job, write_config
from launch.run.execute import execute
from launch.run.plan import make_plan
from unlearn.training import engine
from unlearn.training.trainer import NonFiniteLoss

# The first step takes the weights so far that the loss of the second is not finite.
DIVERGES = [
    "model.nano.layers=1", "model.nano.hidden_size=32", "dataset.options.authors=4",
    "dataset.forget=forget25", "model.finetune.lr=1e300", "method=none", "eval=none", "hardware.threads=1",
    "hardware.dtype=bf16", "tracker=disabled",
]  # fmt: skip


class Engines:
    """A tracker that notes the engines that are open at a step."""

    def __init__(self) -> None:
        self.seen: set[ref[Any]] = set()

    def log(self, row: Any, step: int) -> None:
        for each in engine._OPEN:
            zero = each.model.optimizer
            self.seen |= {ref(each), ref(each.module), ref(each.model), ref(zero.optimizer)}
            masters = "fp32_partitioned_groups_flat" if each.zero == 3 else "single_partition_of_fp32_groups"
            self.seen |= {ref(part) for part in getattr(zero, masters)}


def diverges(root: Path, seen: Engines, zero: int) -> None:
    overrides = [*DIVERGES, f"root={root}", f"hardware.zero={zero}"]
    run = make_plan(checked(compose_run(force_overrides(overrides)))).runs[0]
    run.directory.mkdir(parents=True)
    write_config(run)
    with pytest.raises(NonFiniteLoss):
        execute(read_job(run.rundir)[0], run.rundir, seen, progress=False)


@pytest.mark.parametrize("zero", [2, 3])
def test_a_run_that_fails_leaves_no_engine(tmp_path, zero):
    for attempt in ("first", "second"):
        engines = Engines()
        diverges(tmp_path / attempt, engines, zero)
        gc.collect()
        assert len(engines.seen) > 4
        assert not [each for each in engines.seen if each() is not None]
