"""The tracker against real offline W&B runs, read back from the files they leave."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.tracking import NullTracker, WandbTracker, _key_configured, open_tracker
from launch.worker import _show
from tests.launch.wandb_files import finished_records, read_run
from unlearn.rundir import RunDir


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))


def opened(directory: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "mode": "offline",
        "project": "unlearning",
        "entity": None,
        "group": "tofu-npo",
        "job_type": "unlearn",
        "name": "npo on tofu",
        "run_id": "abc123",
        "tags": ["npo", "tofu"],
        "config": {"method": {"name": "npo", "beta": 0.1}, "seed": 7},
        "directory": directory,
    }
    return open_tracker(**(arguments | changes))


def run_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_offline_run_holds_everything(tmp_path, caplog):
    tracker = opened(tmp_path)
    for step in (1, 2, 3):
        tracker.log({"loss": 2.0 / step, "loss/forget": -0.5, "grad_norm": None}, step=step)
    tracker.log({"tofu/forget_quality": 1.2e-16}, step=3)  # the same step: one row
    tracker.table("samples", ["question", "rougeL_recall"], [["Who?", 0.25], ["Where?", None], ["When?", 1]])
    tracker.summary({"tofu/model_utility": 0.62, "tofu/privleak": None, "tofu/mia/min_k": float("nan")})
    tracker.finish()
    tracker.log({"loss": 0.0}, step=4)  # ignored, not an error

    (path,) = run_files(tmp_path)
    run = read_run(path)
    meta = run["run"]
    assert (meta.run_id, meta.project, meta.run_group, meta.job_type) == (
        "abc123",
        "unlearning",
        "tofu-npo",
        "unlearn",
    )
    assert meta.display_name == "npo on tofu"
    assert list(meta.tags) == ["npo", "tofu"]
    assert run["config"]["method"] == {"name": "npo", "beta": 0.1}
    assert run["config"]["seed"] == 7

    rows = run["history"]
    assert [(row["step"], row["_step"], row["loss"]) for row in rows] == [
        (1, 1, 2.0),
        (2, 2, 1.0),
        (3, 3, 2.0 / 3),
    ]
    assert all(row["loss/forget"] == -0.5 and "grad_norm" not in row for row in rows)
    assert rows[2]["tofu/forget_quality"] == 1.2e-16
    assert ("*", "step") in run["metrics"]  # every curve is drawn against our step

    assert run["summary"]["tofu/model_utility"] == 0.62
    assert run["summary"]["tofu/privleak"] is None
    assert run["summary"]["tofu/mia/min_k"] is None

    (table_file,) = path.parent.glob("files/media/table/samples_*.table.json")
    table = json.loads(table_file.read_text())
    assert table["columns"] == ["question", "rougeL_recall"]
    assert table["data"] == [["Who?", 0.25], ["Where?", None], ["When?", 1]]
    assert warnings_of(caplog) == []


def test_examples_of_every_benchmark_are_a_table_of_the_columns_it_has(tmp_path):
    rows: dict[str, list[dict[str, Any]]] = {
        "general": [
            {"set": "boolq", "id": "boolq/0", "prediction": "yes", "accuracy": 1.0, "logp": math.nan}
        ],
        "muse": [
            {"set": "verbmem", "id": str(i), "generation": f"text {i}", "rougeL_f1": 0.5, "tags": ["a"]}
            for i in range(25)
        ],
        "empty": [],
    }
    for name, own in rows.items():
        (tmp_path / "eval" / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(own), tmp_path / f"eval/{name}/examples.parquet")
    tracker = opened(tmp_path)
    _show(tracker, RunDir(tmp_path), {"muse/forget/verbmem": 0.5})
    tracker.finish()
    (path,) = run_files(tmp_path)
    finished_records(path)
    tables = {
        file.relative_to(path.parent / "files/media/table").as_posix(): json.loads(file.read_text())
        for file in path.parent.glob("files/media/table/**/*.table.json")
    }
    found = {name.rsplit("_", 2)[0]: table for name, table in tables.items()}
    assert set(found) == {"results", "general/examples", "muse/generations"}
    assert found["general/examples"]["columns"] == ["set", "id", "prediction", "accuracy", "logp"]
    assert found["general/examples"]["data"][0][:4] == ["boolq", "boolq/0", "yes", 1.0]
    assert found["muse/generations"]["columns"] == ["set", "id", "generation", "rougeL_f1"]
    assert len(found["muse/generations"]["data"]) == 20


def test_nothing_of_the_machine_is_handed_over(tmp_path):
    tracker = opened(tmp_path)
    tracker.log({"loss": 1.0}, step=1)
    tracker.finish()
    (path,) = run_files(tmp_path)
    finished_records(path)
    sent = path.read_bytes()
    for secret in (socket.gethostname(), sys.executable, str(Path.home()) + "/", os.getcwd()):
        assert secret.encode() not in sent, secret
    handed_over = {file.name for file in (path.parent / "files").rglob("*") if file.is_file()}
    assert not handed_over & {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch"}


def test_resuming_continues_the_same_id_at_the_next_step(tmp_path, caplog):
    for steps in ((1, 2), (3, 4)):
        tracker = opened(tmp_path)
        for step in steps:
            tracker.log({"loss": float(step)}, step=step)
        tracker.finish()
        time.sleep(1.1)  # W&B names an offline folder by the second
    first, second = (read_run(path) for path in run_files(tmp_path))
    assert first["run"].run_id == second["run"].run_id == "abc123"
    assert second["run"].resume
    assert [row["_step"] for row in first["history"] + second["history"]] == [1, 2, 3, 4]
    assert warnings_of(caplog) == []


def test_two_runs_of_one_process_stay_apart(tmp_path):
    one, two = opened(tmp_path / "one", run_id="one"), opened(tmp_path / "two", run_id="two")
    one.log({"loss": 1.0}, step=1)
    two.log({"loss": 2.0}, step=1)
    one.finish()
    two.finish()
    for name, loss in (("one", 1.0), ("two", 2.0)):
        (path,) = run_files(tmp_path / name)
        assert [row["loss"] for row in read_run(path)["history"]] == [loss]


def blocked(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a-file").write_text("")
    return {"directory": tmp_path / "a-file" / "run"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (blocked, "a-file"),
        (lambda _: {"mode": "onlin"}, "onlin"),
        (lambda _: {"run_id": "no/slashes/here"}, "opening"),
    ],
    ids=["directory", "mode", "run id"],
)
def test_a_tracker_that_cannot_open_warns_and_the_run_goes_on(tmp_path, caplog, changes, named):
    with caplog.at_level(logging.WARNING):
        tracker = opened(**({"directory": tmp_path} | changes(tmp_path)))
    assert isinstance(tracker, NullTracker)
    (message,) = warnings_of(caplog)
    assert named in message
    assert "run goes on" in message
    assert "history.jsonl" in message
    tracker.log({"loss": 1.0}, step=1)
    tracker.table("t", ["a"], [["b"]])
    tracker.summary({"loss": 1.0})
    tracker.finish(exit_code=1)


def test_a_later_failure_is_said_once_and_ends_the_mirroring(tmp_path, caplog):
    tracker = opened(tmp_path)
    tracker.log({"loss": 1.0}, step=1)
    run = tracker._run
    with caplog.at_level(logging.WARNING):
        tracker.table("broken", ["one", "two"], [["three", "cells", "here"]])
        tracker.log({"loss": 2.0}, step=2)
        tracker.finish()
    run.finish()  # what the end of the process would do
    (message,) = warnings_of(caplog)
    assert "'broken'" in message
    (path,) = run_files(tmp_path)
    assert [row["loss"] for row in read_run(path)["history"]] == [1.0]


def test_auto_is_offline_without_a_key_and_obeys_the_environment(tmp_path, monkeypatch):
    tracker = opened(tmp_path / "run", mode="auto")
    assert isinstance(tracker, WandbTracker)
    tracker.finish()
    assert len(run_files(tmp_path / "run")) == 1
    monkeypatch.setenv("WANDB_MODE", "disabled")
    opened(tmp_path / "none", mode="auto").finish()
    assert run_files(tmp_path / "none") == []


def test_a_key_is_found_where_wandb_finds_it(tmp_path, monkeypatch):
    import wandb

    settings = wandb.Settings(base_url="https://wandb.example.org")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not _key_configured(settings)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text("machine another.example.org login user password " + "0" * 40 + "\n")
    assert not _key_configured(settings)
    netrc.write_text("machine wandb.example.org login user password " + "0" * 40 + "\n")
    assert _key_configured(settings)
    netrc.write_text("this is { not a netrc file")
    assert not _key_configured(settings)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert _key_configured(settings)


SCRIPT = """
import sys
from pathlib import Path
from tests.launch.wandb_files import finished_records, read_run

from launch.tracking import open_tracker
tracker = open_tracker(mode=sys.argv[1], project="p", entity=None, group=None, job_type="j", name="n",
                       run_id="r", tags=[], config={}, directory=Path(sys.argv[2]))
tracker.log({"loss": 1.0}, step=1)
tracker.finish()
sys.exit(10 if "wandb" in sys.modules else 0)
"""


@pytest.mark.parametrize(("mode", "code"), [("disabled", 0), ("offline", 10)])
def test_disabled_imports_no_wandb_and_no_mode_writes_to_the_terminal(tmp_path, mode, code):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert len(run_files(tmp_path)) == (mode == "offline")
