"""Process groups: how long their collectives wait for a process that works alone."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from tests.unlearn.training import small_training as training
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.distributed import stop_world

HOURS = timedelta(hours=6)  # to write, check or score the largest models on one process


def timeouts(hardware: HardwareConfig) -> list[timedelta]:
    """The timeouts of all process groups of a training: the run's own and DeepSpeed's."""
    engine = training.make_engine(hardware, training.METHOD)
    assert engine.model.optimizer.dp_process_group in distributed_c10d._world.pg_map
    groups = [group._get_backend(torch.device("cpu")) for group in distributed_c10d._world.pg_map]
    engine.close()
    return [group.options._timeout for group in groups]


@pytest.mark.parametrize("zero", [2, 3])
def test_collectives_wait_for_hours(zero):
    waits = timeouts(HardwareConfig(zero=zero))
    assert len(waits) > 1
    assert min(waits) >= HOURS


def process(folder: str) -> None:
    rank = os.environ["RANK"]
    port = int(os.environ["MASTER_PORT"])
    kept = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if rank == "0" else None
    os.environ["UNLEARN_STORE_PREFIX"] = "workers/0"  # as of a run whose command has the store
    waits = timeouts(HardwareConfig(processes=2, zero=2))
    waits.append(distributed_c10d._get_default_store().timeout)  # type: ignore[attr-defined]
    Path(folder, rank).write_text(json.dumps([each.total_seconds() for each in waits]))
    dist.barrier()
    stop_world()
    del kept


@pytest.mark.slow
def test_several_processes_and_their_store_wait_for_hours(tmp_path):
    together(2, process, str(tmp_path))
    for rank in ("0", "1"):
        waits = json.loads((tmp_path / rank).read_text())
        assert len(waits) > 2
        assert min(waits) >= HOURS.total_seconds()
