"""The processes of a run: those of a killed command end before the next one starts its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.run.worker_processes import Workers, after_killed_workers


def test_a_command_waits_for_the_workers_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\nsleep 1\ntouch "$0-ended"\n')
    slow.chmod(0o755)
    workers = Workers(tmp_path, [{"RANK": "0"}], "here")
    with monkeypatch.context() as patch, after_killed_workers(tmp_path) as kept_open:
        patch.setattr(sys, "executable", str(slow))
        workers.start({}, kept_open)
    # The command ends here, without having waited for its worker.
    assert not (tmp_path / "slow-ended").exists()
    with after_killed_workers(tmp_path):
        assert (tmp_path / "slow-ended").exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: processes of a killed command still end: waiting (.workers)"
    ]
    while workers.poll():
        pass
    with after_killed_workers(tmp_path) as kept_open:
        assert subprocess.run(["true"], pass_fds=kept_open, check=False).returncode == 0
    assert len(caplog.records) == 1
