"""GPUs are dealt out to jobs of a pool: by name, so that no GPU is needed here."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch.sweep.gpus import choose, dealt, pool_size, visible
from tests.launch.sweep.processes import FORKS, LIMIT, wait_until
from unlearn.config import HardwareConfig
from unlearn.errors import UserError


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,1", ["0", "1"]),
        ("GPU-8932f937, MIG-GPU-1/2/0", ["GPU-8932f937", "MIG-GPU-1/2/0"]),
        ("2,-1,0", ["2"]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_what_is_dealt_is_what_the_command_sees(variable, names, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible() == names


def hardware(**keys: Any) -> HardwareConfig:
    return HardwareConfig(device="cuda", **keys)


@pytest.mark.parametrize(
    ("keys", "gpus", "jobs"),
    [
        ({}, 3, 3),
        ({"jobs_per_gpu": 4}, 2, 8),
        ({"processes": 2}, 5, 2),
        ({"processes": 2, "jobs_per_gpu": 3}, 2, 3),
        ({"processes": 8, "nodes": 2}, 8, 2),
        ({"processes": 4}, 2, 1),  # which is refused when it begins
        ({"device": "cpu"}, 8, 2),
    ],
)
def test_how_many_jobs_fill_the_gpus(keys, gpus, jobs):
    assert pool_size(HardwareConfig(**{"device": "cuda", **keys}), gpus) == jobs


@pytest.mark.parametrize(
    ("free", "needed", "chosen"),
    [
        ({"0": 1, "1": 1}, 1, ["0"]),
        ({"0": 1, "1": 2, "2": 2}, 1, ["1"]),  # the emptiest
        ({"0": 1, "1": 0, "2": 2}, 2, ["0", "2"]),
        ({"0": 2, "1": 0}, 2, None),  # two of one are not two GPUs
    ],
)
def test_which_gpus_a_job_gets(free, needed, chosen):
    assert choose(free, needed) == chosen


def test_a_job_that_needs_more_gpus_than_there_are_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    problem = r"hardware.processes=4: each job needs 4 GPUs, and 3 .*CUDA_VISIBLE_DEVICES=0,1,2"
    with pytest.raises(UserError, match=problem), dealt(hardware(processes=4), tmp_path):
        pass
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def take_turns(folder: Path, turns: int) -> None:
    """Use two GPUs and leave a mark of each while it is used; log how many marks each has."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2"
    for _ in range(turns):
        with dealt(hardware(processes=2, jobs_per_gpu=2), folder):
            marks = [folder / f"used-{gpu}-{os.getpid()}" for gpu in visible()]
            for mark in marks:
                mark.touch()
            uses = {gpu: len([*folder.glob(f"used-{gpu}-*")]) for gpu in visible()}
            with (folder / "log").open("a") as log:
                log.write(f"{json.dumps(uses)}\n")
            time.sleep(0.02)
            for mark in marks:
                mark.unlink()


@pytest.mark.slow
def test_processes_that_compete_never_use_more_than_the_slots(tmp_path):
    """Three of five at a time: they would use a GPU thrice if the slots were not locked."""
    jobs = [FORKS.Process(target=take_turns, args=(tmp_path, 8)) for _ in range(5)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(LIMIT)
    assert [job.exitcode for job in jobs] == [0] * 5
    uses = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(uses) == 5 * 8
    assert {len(use) for use in uses} == {2}
    assert max(count for use in uses for count in use.values()) == 2
    assert {gpu for use in uses for gpu in use} == {"0", "1", "2"}


def keep(folder: Path, seconds: float) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "5"
    with dealt(hardware(), folder):
        (folder / "kept").touch()
        time.sleep(seconds)


@pytest.mark.slow
def test_a_killed_job_gives_its_gpu_back(tmp_path):
    job = FORKS.Process(target=keep, args=(tmp_path, LIMIT))
    job.start()
    wait_until((tmp_path / "kept").exists)
    job.kill()
    job.join(LIMIT)
    other = FORKS.Process(target=keep, args=(tmp_path, 0))  # a process, which can be ended if it waits
    other.start()
    other.join(LIMIT)
    other.kill()
    assert other.exitcode == 0
