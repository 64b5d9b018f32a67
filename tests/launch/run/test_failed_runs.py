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
    "hardware.dtype=bf16", "hardware.zero=2", "tracker=disabled",
]  # fmt: skip


class Engines:
    """A tracker that notes the engines that are open at a step."""

    def __init__(self) -> None:
        self.seen: set[ref[Any]] = set()

    def log(self, row: Any, step: int) -> None:
        for each in engine._OPEN:
            zero = each.model.optimizer
            self.seen |= {ref(each), ref(each.module), ref(each.model), ref(zero.optimizer)}
            self.seen |= {ref(part) for part in zero.single_partition_of_fp32_groups}


def diverges(root: Path, seen: Engines) -> None:
    run = make_plan(checked(compose_run(force_overrides([*DIVERGES, f"root={root}"])))).runs[0]
    run.directory.mkdir(parents=True)
    write_config(run)
    with pytest.raises(NonFiniteLoss):
        execute(read_job(run.rundir)[0], run.rundir, seen, progress=False)


def test_a_run_that_fails_leaves_no_engine(tmp_path):
    for attempt in ("first", "second"):
        engines = Engines()
        diverges(tmp_path / attempt, engines)
        gc.collect()
        assert len(engines.seen) > 4
        assert not [each for each in engines.seen if each() is not None]
