"""The processes of a task: those of a killed command end before the next one starts its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch.run.worker_processes import Workers


def test_workers_wait_for_those_of_a_killed_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(tmp_path, [{"RANK": "0"}], "here")
    with workers._lock() as kept_open:
        orphan = subprocess.Popen(["sleep", "1"], pass_fds=kept_open)
    with Workers(tmp_path, [{"RANK": "2"}], "there")._lock():  # of another task
        assert orphan.poll() is None
    with workers._lock():
        assert orphan.wait() == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: the processes of a killed command still end: waiting"
    ]
