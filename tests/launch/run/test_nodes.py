"""One run by the tasks of a Slurm step: real processes with the variables that srun would set."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from launch.compose import checked, compose_run, force_overrides
from launch.run.execute import _threads
from launch.run.plan import make_plan
from launch.run.rendezvous import PORTS, ports
from launch.run.slurm_task import Task, expand, leads, this_task
from launch.run.supervisor import RunFailed, judge
from launch.run.worker_processes import Report, log_of
from launch.validate import check
from tests.launch.children import Child, Nursery
from unlearn.config import HardwareConfig
from unlearn.errors import ConfigError, UserError
from unlearn.guard import REFUSED

SMALL = [
    "method=finetune",
    "dataset.options.authors=10",
    "model.nano.layers=1",
    "method.batch=8",
    "hardware.processes=2",
    "hardware.threads=1",
    "eval=none",
    "tracker=disabled",
]
STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "here", "SLURM_STEP_ID": "0"}


def as_task(children: Nursery, number: int, cwd: Path, *arguments: str) -> Child:
    """Start the command as one of the two tasks of a step."""
    mine = {
        **STEP, "SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number),
        "SLURMD_NODENAME": f"node{number}",
    }  # fmt: skip
    return children.start(cwd, *SMALL, *arguments, environment=mine)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("a", ["a"]),
        ("a,b.domain", ["a", "b.domain"]),
        ("gpu-[08-10,3],login", ["gpu-08", "gpu-09", "gpu-10", "gpu-3", "login"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("c[7]-ib", ["c7-ib"]),
    ],
)
def test_node_lists_are_read_without_slurm(nodelist, hosts):
    assert expand(nodelist) == hosts


@pytest.mark.parametrize("nodelist", ["", "a[1-", "a[x-y]"])
def test_a_wrong_node_list_is_named(nodelist):
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST="):
        expand(nodelist)


def test_the_variables_of_a_tasks_processes():
    four = {
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "n[5-6]",
    }  # fmt: skip
    task = this_task(four)
    assert task == Task(3, 4, 1, "n5", "17.2")
    # 8 processes, 4 tasks, 2 of them on each node: task 3 has ranks 6 and 7, the third and fourth of its node
    variables = task.process_variables(8)
    assert [(p["RANK"], p["LOCAL_RANK"], p["WORLD_SIZE"]) for p in variables] == [
        ("6", "2", "8"),
        ("7", "3", "8"),
    ]
    # all GPUs of the node in sight, or its own two alone
    assert [p["LOCAL_RANK"] for p in task.process_variables(8, devices=4)] == ["2", "3"]
    assert [p["LOCAL_RANK"] for p in task.process_variables(8, devices=2)] == ["0", "1"]
    with pytest.raises(UserError, match=r"hardware.processes=6 .* 4 tasks .* multiple of 4"):
        task.process_variables(6)


def test_on_one_node_the_tasks_meet_without_its_name():
    assert this_task({**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n5"}).leader == "127.0.0.1"


def test_outside_of_a_step_there_is_one_task():
    batch_script = {
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "0",
        "SLURM_NODELIST": "n[1-4]",
    }
    alone = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"}
    assert this_task({}) == this_task(batch_script) == this_task(alone) == Task()
    assert Task().process_variables(2)[1] == {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }


@pytest.mark.parametrize(
    ("cores", "given", "hardware", "threads"),
    [
        (8, {}, {"processes": 2}, 4),
        (8, {}, {"processes": 16, "nodes": 2}, 1),
        (8, {"SLURM_CPUS_PER_TASK": "64"}, {"processes": 4, "nodes": 2}, 4),  # more than there are
        # two tasks of a node with a process each: bound to four of its cores, or to all eight
        (4, {"SLURM_CPUS_PER_TASK": "4", "LOCAL_WORLD_SIZE": "1"}, {"processes": 2}, 4),
        (8, {"SLURM_CPUS_PER_TASK": "4", "LOCAL_WORLD_SIZE": "1"}, {"processes": 2}, 4),
    ],
)
def test_a_process_gets_its_share_of_the_cores(monkeypatch, cores, given, hardware, threads):
    monkeypatch.setattr("launch.run.execute.allowed_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(hardware["processes"] // hardware.get("nodes", 1)))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert _threads(HardwareConfig(**hardware)) == threads


def test_only_the_first_task_leads(monkeypatch):
    assert leads()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert leads()  # no step of several tasks
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert not leads()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert leads()


def test_ports_follow_from_the_step():
    assert ports("17.0") == ports("17.0") != ports("17.1")
    assert all(port in PORTS for port in ports("17.0"))


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        check(checked(compose_run(force_overrides([*SMALL, *overrides]))))
    return refused.value.problems


def test_processes_that_cannot_be_divided_are_refused(monkeypatch):
    (uneven,) = problems("hardware.nodes=2", "hardware.processes=3")
    assert "hardware.processes=3" in uneven
    assert "multiple of hardware.nodes=2" in uneven
    (alone,) = problems("hardware.nodes=2")
    assert "this is not a Slurm step" in alone
    assert "srun --nodes=2 --ntasks-per-node=1" in alone
    for key, value in {**STEP, "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(key, value)
    (step,) = problems("hardware.nodes=2")
    assert "this Slurm step has 3 tasks" in step
    (few,) = problems("hardware.processes=1")
    assert "cannot be shared by the 3 tasks" in few
    assert "unset SLURM_STEP_NUM_TASKS" in few


def _steps(run: Path, wanted: int, *tasks: Child) -> None:
    """Wait until this number of steps has been made."""
    for task in tasks:
        assert task.until(lambda: (run / "history.jsonl").is_file() and len(losses(run)) >= wanted), (
            "it ended"
        )


def _answers(port: int) -> bool:
    """Send what no task sends; returns whether somebody listens."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
        stranger.sendall(b"\xff\xfe\n")
        return True
    return False


@pytest.mark.slow
def test_tasks_meet_while_another_command_makes_the_run(children, tmp_path):
    (tmp_path / "run").mkdir()
    mine = ports(f"{os.getpid()}.0")
    with FileLock(tmp_path / "run" / ".lock"):
        leader, follower = (as_task(children, n, tmp_path, "hydra.run.dir=run") for n in range(2))
        assert leader.until(lambda: "is being made by another process" in leader.err.read_text())
        assert any(_answers(port) for port in mine)
        # The port closes once the follower has asked: it waits for the run, and no longer for the first task.
        assert follower.until(lambda: not any(_answers(port) for port in mine))
        leader.send(signal.SIGTERM)
        assert (leader.ended().code, follower.ended().code) == (75, 75)


@pytest.mark.slow
def test_a_killed_worker_ends_all_and_a_signal_stops_all(children, tmp_path):
    given = ["method.epochs=2000", "checkpoint.every_steps=5", "hydra.run.dir=run"]
    run = tmp_path / "run"
    tasks = [as_task(children, number, tmp_path, *given) for number in range(2)]
    _steps(run, 6, *tasks)
    (victim,) = psutil.Process(tasks[1].pid).children()
    victim.send_signal(signal.SIGKILL)
    leader, follower = (task.ended() for task in tasks)
    assert (leader.code, follower.code) == (2, 2)
    for words in ("process 1 of 2 on node1", "code -9 (SIGKILL)", "run/process-1.log"):
        assert words in leader.err
    assert "task 1 on node1 ended" in follower.err

    # Started again it goes on from the checkpoint, until a signal comes to the second task alone.
    made = len(losses(run))
    tasks = [as_task(children, number, tmp_path, *given) for number in range(2)]
    _steps(run, made + 2, *tasks)
    tasks[1].send(signal.SIGTERM)
    leader, follower = (task.ended() for task in tasks)
    assert (leader.code, follower.code) == (75, 75)
    assert (run / "checkpoints" / f"step-{len(losses(run))}" / "state.json").is_file()


def test_what_a_process_refuses_is_said_once_and_a_crash_names_its_log(tmp_path):
    run = make_plan(checked(compose_run(force_overrides(SMALL))), tmp_path / "run").main
    run.directory.mkdir()
    line = "2026-01-01 10:00:00,1 ERROR launch.run.worker: UserError: the loss is nan in step 3\n"
    log_of(run.directory, 1).write_text(line)
    with pytest.raises(RunFailed, match=r"^the loss is nan in step 3$"):
        judge(run, [Report("here", failed={1: REFUSED})])
    with pytest.raises(
        RunFailed, match=r"the loss is nan in step 3: process 1 of 2 on here ended with code 1;"
    ):
        judge(run, [Report("here", failed={1: 1})])
