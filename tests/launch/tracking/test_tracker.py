"""The tracker against real offline W&B runs, read back from the files they leave."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wandb

from launch.compose import checked, compose_run
from launch.job import Job
from launch.tracking.tracker import GuardedTracker, NullTracker, open_tracker
from launch.tracking.trackers import TrackedRun
from launch.tracking.upload import send_results, send_tables
from launch.tracking.wandb_session import key_configured, session
from tests.launch.tracking.wandb_files import finished_records, read_run
from tests.launch.tracking.wandb_server import KEY, serving
from unlearn.config import TrackerConfig
from unlearn.models.weights import WeightsSource
from unlearn.run_dir import RunDir


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))


def opened(directory: Path, mode: str = "offline", **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "id": "abc123",
        "name": "npo on tofu",
        "kind": "unlearn",
        "project": "unlearning",
        "group": "tofu-npo",
        "tags": ["npo", "tofu"],
        "config": {"method": {"name": "npo", "beta": 0.1}, "seed": 7},
        "directory": directory,
    }
    return open_tracker(
        TrackerConfig.model_validate({"mode": mode}), lambda: TrackedRun(**(arguments | changes))
    )


def run_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("launch.")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


@pytest.mark.slow
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


@pytest.mark.slow
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
    send_tables(tracker, RunDir(tmp_path))
    tracker.finish()
    (path,) = run_files(tmp_path)
    finished_records(path)
    tables = {
        file.relative_to(path.parent / "files/media/table").as_posix(): json.loads(file.read_text())
        for file in path.parent.glob("files/media/table/**/*.table.json")
    }
    found = {name.rsplit("_", 2)[0]: table for name, table in tables.items()}
    assert set(found) == {"general/examples", "muse/generations"}
    assert found["general/examples"]["columns"] == ["set", "id", "prediction", "accuracy", "logp"]
    assert found["general/examples"]["data"][0][:4] == ["boolq", "boolq/0", "yes", 1.0]
    assert found["muse/generations"]["columns"] == ["set", "id", "generation", "rougeL_f1"]
    assert len(found["muse/generations"]["data"]) == 20


@pytest.mark.slow
def test_tables_wait_in_the_run_s_own_folder(tmp_path, monkeypatch):
    """Not below the home directory, which may be another one where they are sent from."""
    monkeypatch.delenv("WANDB_DATA_DIR")
    tracker = opened(tmp_path)
    tracker.table("samples", ["question"], [["Who?"]])
    assert "WANDB_DATA_DIR" not in os.environ
    tracker.finish()
    (path,) = run_files(tmp_path)
    (artifact,) = read_run(path)["artifacts"]
    (entry,) = artifact.manifest.contents
    assert Path(entry.local_path).is_relative_to(tmp_path / "wandb")
    assert json.loads(Path(entry.local_path).read_text())["data"] == [["Who?"]]


def test_files_that_cannot_be_read_fail_no_run(tmp_path, caplog):
    (tmp_path / "eval" / "tofu").mkdir(parents=True)
    (tmp_path / "eval" / "tofu" / "examples.parquet").write_bytes(b"no parquet")
    config = checked(compose_run(["method=none"]))
    tracker = opened(tmp_path)
    with caplog.at_level(logging.WARNING):
        send_results(
            tracker, Job(config, "abc123", WeightsSource(None, "k")), "run", RunDir(tmp_path), {"loss": 1.0}
        )
    tracker.finish()
    (path,) = run_files(tmp_path)
    assert read_run(path)["summary"]["loss"] == 1.0
    (message,) = warnings_of(caplog)
    assert "not get all of this run's files" in message


def test_switched_off_by_the_environment_it_takes_everything(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("WANDB_DATA_DIR")
    tracker = opened(tmp_path, mode="auto")
    tracker.log({"loss": 1.0}, step=1)
    tracker.table("t", ["a"], [["b"]])
    tracker.figure("f", {"data": []})
    tracker.summary({"loss": 1.0})
    tracker.finish()
    assert warnings_of(caplog) == []


def private(sent: str) -> list[str]:
    """Names of this machine in a text, as whole words: a short one is part of a random id now and then."""
    names = (socket.gethostname(), sys.executable, str(Path.home()), os.getcwd())
    return [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sent)]


def test_nothing_of_the_machine_is_handed_over(tmp_path):
    tracker = opened(tmp_path)
    tracker.log({"loss": 1.0}, step=1)
    tracker.finish()
    (path,) = run_files(tmp_path)
    sent = "\n".join(map(str, finished_records(path)))
    assert "abc123" in sent
    assert private(sent) == []
    handed_over = {file.name for file in (path.parent / "files").rglob("*") if file.is_file()}
    assert not handed_over & {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch"}


@pytest.mark.slow
def test_resuming_continues_the_same_id_at_the_next_step(tmp_path, caplog):
    for steps in ((1, 2), (3, 4)):
        tracker = opened(tmp_path)
        for step in steps:
            tracker.log({"loss": float(step)}, step=step)
        tracker.finish()
        if not run_files(tmp_path)[1:]:
            time.sleep(1.1)  # W&B names an offline folder by the second
    first, second = (read_run(path) for path in run_files(tmp_path))
    assert first["run"].run_id == second["run"].run_id == "abc123"
    assert second["run"].resume
    assert [row["_step"] for row in first["history"] + second["history"]] == [1, 2, 3, 4]
    assert warnings_of(caplog) == []


def test_a_run_that_began_without_it_is_logged_from_its_beginning(tmp_path):
    tracker = opened(tmp_path, history=[{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    tracker.log({"loss": 1.0}, step=3)
    tracker.finish()
    (file,) = run_files(tmp_path)
    assert [(row["_step"], row["loss"]) for row in read_run(file)["history"]] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]


def test_two_runs_of_one_process_stay_separate(tmp_path):
    one, two = opened(tmp_path / "one", id="one"), opened(tmp_path / "two", id="two")
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
        (lambda _: {"id": "no/slashes/here"}, "opening"),
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


def test_a_later_failure_is_reported_once_and_ends_the_mirroring(tmp_path, caplog):
    tracker = opened(tmp_path)
    tracker.log({"loss": 1.0}, step=1)
    run = tracker.tracker.wandb_run
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
    assert isinstance(tracker, GuardedTracker)
    tracker.finish()
    assert len(run_files(tmp_path / "run")) == 1
    monkeypatch.setenv("WANDB_MODE", "disabled")
    opened(tmp_path / "none", mode="auto").finish()
    assert run_files(tmp_path / "none") == []


def test_a_key_is_found_where_wandb_finds_it(tmp_path, monkeypatch):
    settings = wandb.Settings(base_url="https://wandb.example.org")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not key_configured(settings)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text("machine another.example.org login user password " + "0" * 40 + "\n")
    assert not key_configured(settings)
    netrc.write_text("machine wandb.example.org login user password " + "0" * 40 + "\n")
    assert key_configured(settings)
    # The key of W&B's own service, under the older of its two names.
    netrc.write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert key_configured(wandb.Settings(base_url="https://api.wandb.ai"))
    netrc.write_text("this is { not a netrc file")
    assert not key_configured(settings)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert key_configured(settings)


@pytest.fixture
def homeless(monkeypatch):
    """As in a container with a user id that the system does not know."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):  # set for W&B: removed again after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_without_a_home_directory_there_is_no_key(homeless, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()  # is no home directory
    (tmp_path / "~" / ".netrc").write_text("machine wandb.example.org login user password " + "0" * 40)
    settings = wandb.Settings(base_url="https://wandb.example.org")
    assert not key_configured(settings)
    assert not key_configured(session(settings))


@pytest.mark.slow
def test_without_a_home_directory_a_run_is_logged_offline(homeless, tmp_path):
    tracker = opened(tmp_path, mode="auto")
    tracker.log({"loss": 1.0}, step=1)
    tracker.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


SCRIPT = """
import sys
from pathlib import Path
from tests.launch.tracking.wandb_files import finished_records, read_run

from launch.tracking.tracker import open_tracker
from launch.tracking.trackers import TrackedRun
from unlearn.config import TrackerConfig
tracker = open_tracker(
    TrackerConfig(mode=sys.argv[1]),
    lambda: TrackedRun(id="r", name="n", kind="j", project="p", group=None, tags=[], config={},
               directory=Path(sys.argv[2])),
)
tracker.log({"loss": 1.0}, step=1)
tracker.finish()
sys.exit(10 if "wandb" in sys.modules else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "code"), [("disabled", 0), ("offline", 10)])
def test_disabled_imports_no_wandb_and_no_mode_writes_to_the_terminal(tmp_path, mode, code):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert len(run_files(tmp_path)) == (mode == "offline")


# -- online: a service on this machine stands for W&B's ------------------------------------------------------


@pytest.fixture
def service(monkeypatch):
    with serving() as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # what it was set up with before is gone
        yield served
    wandb.teardown()


@pytest.mark.slow
def test_online_a_continued_run_goes_on_behind_its_last_row(tmp_path, service):
    rows = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    tracker = opened(tmp_path, mode="auto")
    for row in rows:
        tracker.log(row, step=row["step"])
    tracker.finish()
    # Killed after step 3, continued from a checkpoint of step 2.
    tracker = opened(tmp_path, mode="auto", history=rows)
    for step in (3, 4):
        tracker.log({"step": step, "loss": float(step)}, step=step)
    tracker.finish()
    # Evaluated in another way: nothing is trained.
    tracker = opened(tmp_path, mode="auto", history=[*rows, {"step": 4, "loss": 4.0}])
    tracker.figure("figures/x", {"data": [{"type": "scatter", "x": [1], "y": [2]}]})
    tracker.finish()
    sent = service.histories["abc123"]
    assert [(row["_step"], row.get("loss")) for row in sent] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, None),
    ]
    assert "figures/x" in sent[-1]


def test_online_nothing_of_the_machine_is_sent(tmp_path, service):
    tracker = opened(tmp_path, mode="online")
    tracker.log({"loss": 1.0}, step=1)
    tracker.summary({"tofu/model_utility": 0.5})
    tracker.finish()
    assert service.runs[0]["displayName"] == "npo on tofu"
    assert service.runs[0]["program"] == "unlearn"
    sent = "\n".join(service.texts)
    assert "tofu/model_utility" in sent
    assert private(sent) == []
    assert KEY not in sent


@pytest.mark.slow
def test_an_outage_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    with serving() as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        tracker = opened(tmp_path, mode="online")
        tracker.log({"loss": 1.0}, step=1)
    tracker.log({"loss": 2.0}, step=2)
    tracker.finish()  # waits no longer than the timeout
    (file,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert [row["loss"] for row in read_run(file)["history"]] == [1.0, 2.0]  # to be sent another time
    wandb.teardown()


@pytest.mark.slow
def test_without_an_answer_an_online_run_is_logged_offline(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "a run"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    wandb.teardown()
    with caplog.at_level(logging.WARNING):
        tracker = opened(folder, mode="auto")
        tracker.log({"loss": 1.0}, step=1)
        tracker.finish()
    wandb.teardown()
    (message,) = warnings_of(caplog)
    assert f"`unlearn sync '{folder}'`" in message
    (file,) = run_files(folder)
    assert [row["loss"] for row in read_run(file)["history"]] == [1.0]


# -- more than numbers -------------------------------------------------------------------------------------


def test_a_model_is_an_artifact_that_is_sent_from_where_it_lies(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    tracker = opened(tmp_path / "run", name="n" * 300, tags=["t" * 100, "", "tofu", "tofu"])
    tracker.model("npo tofu/forget10 (é)", model, {"fingerprint": "abc123", "tofu/privleak": math.nan})
    tracker.finish()
    (file,) = run_files(tmp_path / "run")
    run = read_run(file)
    (artifact,) = run["artifacts"]
    assert (artifact.type, artifact.name) == ("model", "npo-tofu-forget10-")
    assert json.loads(artifact.metadata) == {"fingerprint": "abc123", "tofu/privleak": None}
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert files == {name: str(model / name) for name in ("config.json", "model.safetensors")}
    assert len(run["run"].display_name) == 128  # W&B takes no longer ones
    assert list(run["run"].tags) == ["t" * 64, "tofu"]


def test_a_figure_is_kept_as_plotly_draws_it(tmp_path):
    tracker = opened(tmp_path)
    tracker.log({"loss": 1.0}, step=7)
    tracker.figure("figures/trade-off", {"data": [{"type": "scatter", "x": [0.5], "y": [0.1]}]})
    tracker.finish()
    (file,) = run_files(tmp_path)
    (row,) = read_run(file)["history"]
    assert row["step"] == 7
    (drawn,) = file.parent.glob("files/media/plotly/figures/trade-off_7_*.plotly.json")
    assert json.loads(drawn.read_text())["data"][0]["x"] == [0.5]
