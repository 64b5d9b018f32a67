"""TensorBoard's event log and MLflow's database, read back with their own readers."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.tracking import trackers
from launch.tracking.tracker import GuardedTracker, open_tracker
from launch.tracking.trackers import TrackedRun
from tests.launch.commands import done, unlearn
from unlearn.config import TrackerConfig

TINY = [
    "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2", "model.finetune.steps=2",
    "dataset.options.authors=10", "method.steps=2", "eval.limit=2", "eval.max_new_tokens=2",
    "hardware.threads=1", "eval.compare=false",
]  # fmt: skip
CHART = {"data": [{"type": "scatter", "name": "target", "x": [0.5], "y": [0.25]}]}


def opened(directory: Path, **settings: Any) -> GuardedTracker:
    run = TrackedRun(
        id="abc123", name="npo on tofu", kind="unlearn", project="study", group="a-sweep",
        tags=["npo", "tofu"], directory=directory,
        config={"method": {"name": "npo", "lr": 1e-5}, "seed": 7, "model": {"variables": {"a=b": 1}}},
    )  # fmt: skip
    tracker = open_tracker(TrackerConfig.model_validate(settings), lambda: run)
    assert isinstance(tracker, GuardedTracker)
    return tracker


def log_twice(directory: Path, **settings: Any) -> None:
    """A run that is killed after step 3, continued after step 2, and then evaluated again in another way."""
    tracker = opened(directory, **settings)
    for step in (1, 2, 3):
        tracker.log({"step": step, "loss": float(step), "loss/forget": None, "tokens_per_s": 10.0}, step=step)
    tracker = opened(directory, **settings)
    for step in (3, 4):
        tracker.log({"step": step, "loss": float(step), "tokens_per_s": 20.0}, step=step)
    tracker.log({"step": 4, "tofu/model_utility": 0.5}, step=4)
    for utility in (0.5, 0.5, 0.75):
        tracker.summary(
            {"tofu/model_utility": utility, "tofu/forget_quality": 1.2e-16, "tofu/privleak": None}
        )
        tracker.table("tofu/generations", ["question", "score"], [["Who, |?\nMe", 0.25], ["When?", None]])
        tracker.figure("figures/trade-off", CHART)
        tracker.model("npo-tofu", directory / "model", {"seed": 7})
        tracker.finish()
        tracker = opened(directory, **settings)
    tracker.finish(exit_code=1)


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def warned(caplog) -> Any:
    """Fails at the end if a tracker stopped."""
    yield
    assert [r.getMessage() for r in caplog.records if r.name.startswith("launch.")] == []


def event_log(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


@pytest.mark.slow  # the import of TensorBoard
@pytest.mark.usefixtures("warned")
def test_tensorboard_has_every_number_once(tmp_path, model):
    log_twice(tmp_path, name="tensorboard")
    log = event_log(tmp_path)
    scalars = {tag: [(each.step, each.value) for each in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    assert scalars == {
        "loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)],
        "tokens_per_s": [(1, 10.0), (2, 10.0), (3, 10.0), (4, 20.0)],
        "tofu/model_utility": [(4, 0.5)],
        "summary/tofu/model_utility": [(4, 0.5), (4, 0.75)],
        "summary/tofu/forget_quality": [(4, pytest.approx(1.2e-16))],
    }
    texts = {
        tag.removesuffix("/text_summary"): log.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in log.Tags()["tensors"]
    }
    assert texts["tofu/generations"].splitlines()[2:] == ["| Who, \\|? Me | 0.25 |", "| When? | – |"]
    assert texts["figures/trade-off"].splitlines()[2:] == ["| target | 0.5 | 0.25 |"]
    assert str(model) in texts["model"]
    assert json.loads(texts["config"].strip("`"))["method"] == {"name": "npo", "lr": 1e-5}
    session = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"a-sweep" in session
    assert b"method.lr" in session


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
@pytest.mark.slow  # MLflow makes its database in many steps
@pytest.mark.usefixtures("warned")
def test_mlflow_continues_its_run(tmp_path, model):
    store = f"sqlite:///{tmp_path}/study.db"
    log_twice(tmp_path, name="mlflow", uri=store)
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment: Any = client.get_experiment_by_name("study")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("npo on tofu", "FAILED")
    tags = {"id": "abc123", "kind": "unlearn", "group": "a-sweep", "tags": "npo,tofu"}
    assert run.data.tags == tags | {"mlflow.runName": "npo on tofu"}
    assert run.data.params == {
        "method.name": "npo", "method.lr": "1e-05", "seed": "7", "model.variables.a_b": "1"
    }  # fmt: skip
    values = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    assert {key: [(each.step, each.value) for each in rows] for key, rows in values.items()} == {
        "loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)],
        "tokens_per_s": [(1, 10.0), (2, 10.0), (3, 10.0), (4, 20.0)],
        "tofu/model_utility": [(4, 0.5), (4, 0.75)],
        "tofu/forget_quality": [(4, 1.2e-16)],
    }
    assert run.data.metrics["tofu/model_utility"] == 0.75
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    with (folder / "tables/tofu/generations.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["question", "score"], ["Who, |?\nMe", "0.25"], ["When?", ""]]
    assert "target" in (folder / "figures/trade-off.html").read_text()
    assert (folder / "model/config.json").read_text() == "{}"


@pytest.mark.slow
def test_a_whole_run_is_in_tensorboard(tmp_path):
    done(tmp_path, *TINY, "tracker=tensorboard", "eval.every_steps=1")
    (run,) = tmp_path.glob("runs/npo-*")
    assert not (run / "tracker-due").exists()
    # As if its process had been killed after it wrote the results, and then of a run that has all.
    shutil.rmtree(run / "tensorboard")
    (run / "tracker-due").touch()
    done(tmp_path, *TINY, "tracker=tensorboard", "eval.every_steps=1")
    assert not (run / "tracker-due").exists()
    log, results = event_log(run), json.loads((run / "results.json").read_text())
    numbers = {key: value for key, value in results.items() if value is not None}
    summary = {key: log.Scalars(f"summary/{key}")[-1].value for key in numbers}
    assert summary == pytest.approx(numbers, rel=1e-5)
    assert [each.step for each in log.Scalars("loss")] == [1, 2]
    assert {"results/text_summary", "tofu/generations/text_summary"} <= {*log.Tags()["tensors"]}
    assert "tracker" not in (run / "run.log").read_text()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(f"launch.tracking.trackers.{name}.find_spec", lambda _: None)
    shown = unlearn(tmp_path, f"tracker={name}", "dry_run=true")
    assert shown.code == 2
    assert f"tracker.name={name} needs" in shown.err
    assert f"pip install 'unlearn-lab[{name}]'" in shown.err


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_no_place_for_mlflow(uri):
    (problem,) = trackers.check(TrackerConfig.model_validate({"name": "mlflow", "uri": uri}))
    assert problem.startswith(f"tracker.uri={uri}: ")


def test_mlflows_address_is_named_by_where_it_comes_from(monkeypatch):
    def problems(uri=None):
        return trackers.check(TrackerConfig.model_validate({"name": "mlflow", "uri": uri}))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert problems()[0].startswith("MLFLOW_TRACKING_URI=./mlruns: ")
    for usable in ("databricks", "postgresql://me:pw@host/db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", usable)
        assert problems() == []
    (problem,) = problems("postgresql://me:pw@host/db")
    assert "set MLFLOW_TRACKING_URI instead" in problem
    assert "pw" not in problem.replace("password", "")


@pytest.mark.slow
def test_no_library_is_imported_but_that_of_the_tracker():
    """The help shows the options of all trackers, and DeepSpeed imports MLflow where it is installed."""
    code = (
        "import sys; from launch.tracking.trackers import TRACKERS; "
        "all(TRACKERS.find(name, name) for name in TRACKERS.names()); "
        "assert not {'tensorboard', 'mlflow', 'wandb', 'torch', 'plotly'} & sys.modules.keys(); "
        "import unlearn.training.engine; "
        "assert not {'tensorboard', 'mlflow', 'wandb'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
