"""What whole runs leave for W&B, read back from their offline folders; sending them, and the saved view."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import wandb
from filelock import FileLock

from launch.tracking import sync, workspace
from launch.tracking.tracker import open_tracker
from launch.tracking.trackers import TrackedRun
from tests.launch.commands import done
from tests.launch.tracking.wandb_files import read_run
from tests.launch.tracking.wandb_server import KEY, Service, serving
from unlearn.config import TrackerConfig
from unlearn.files import read_json

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")

SMALL = [
    "dataset.options.authors=10", "model.nano.layers=2", "model.finetune.epochs=1", "method.batch=4",
    "method.epochs=2", "eval.max_new_tokens=4", "eval.limit=4", "eval.every_steps=1", "hardware.threads=1",
    "tracker=offline", "tracker.project=study", "tracker.model=true",
]  # fmt: skip
LOSSES = {"train/loss", "train/steps", "train/tokens", "train/memory_gib"}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent-netrc"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """NPO with all that it needs, in one sweep: what W&B has of each run, by the run's name."""
    cwd = tmp_path_factory.mktemp("study")
    os.environ["UNLEARN_SWEEP"] = "a-sweep"
    try:
        done(cwd, *SMALL, "method.lr=2e-5", "method.forget.beta=0.5")
    finally:
        del os.environ["UNLEARN_SWEEP"]
    found = {}
    for file in cwd.glob("runs/*/wandb/offline-run-*/*.wandb"):
        run = read_run(file)
        found[run["run"].display_name] = run | {"folder": file.parent, "directory": file.parents[2]}
    return found


@pytest.mark.slow
def test_a_person_can_read_what_the_runs_are(study):
    kinds = {name: run["run"].job_type for name, run in study.items()}
    assert kinds == {
        "build the target authors full nano": "finetune",
        "build the retain model authors retain nano": "finetune",
        "evaluate the retain model authors forget10 nano": "evaluate",
        "evaluate the target authors forget10 nano": "evaluate",
        "npo authors forget10 nano beta=0.5 lr=2e-05 batch=4 epochs=2 seed 0": "unlearn",
    }
    for run in study.values():
        assert (run["run"].project, run["run"].run_group) == ("study", "a-sweep")
        assert re.fullmatch(f"{run['config']['fingerprint']}-[0-9a-f]{{8}}", run["run"].run_id)
    tags = {run["run"].job_type: set(run["run"].tags) for run in study.values()}
    assert tags["unlearn"] == {"nano", "authors", "forget10", "npo"}
    assert tags["evaluate"] >= {"none", "forget10"}


@pytest.mark.slow
def test_every_run_has_the_same_keys(study):
    def measured_by(summary: Iterable[str]) -> set[str]:
        """What could not be measured is counted where there is such an example."""
        keys = {key for key in summary if key.startswith("tofu/") and not key.endswith("/missing")}
        return keys - {"tofu/generations"}

    kinds: dict[str, list[dict[str, Any]]] = {}
    for run in study.values():
        kinds.setdefault(run["run"].job_type, []).append(run)
        results = read_json(run["directory"] / "results.json")
        assert {key: run["summary"][key] for key in results} == pytest.approx(results, nan_ok=True)
    (unlearned,) = kinds["unlearn"]
    curves = {key for row in unlearned["history"] for key in row}
    for finetuned in kinds["finetune"]:
        assert finetuned["summary"].keys() >= LOSSES
        logged = {key for row in finetuned["history"] for key in row if not key.startswith("loss/")}
        assert {"loss", "lr", "grad_norm", "step"} <= logged <= curves | {"results"}
    assert unlearned["summary"].keys() >= LOSSES
    measured = measured_by(unlearned["summary"])
    assert {"tofu/forget_quality", "tofu/model_utility", "tofu/forget/rougeL_recall"} <= measured
    of_retain, of_target = sorted(kinds["evaluate"], key=lambda run: "tofu/forget_quality" in run["summary"])
    for evaluated in (of_retain, of_target):
        assert measured_by(evaluated["summary"]) <= measured
    # But for what compares a model with the target, which it is itself.
    missing = measured - of_target["summary"].keys()
    assert {key for key in missing if not key.startswith("tofu/mia/reference")} == set()
    on_the_way = {key for row in unlearned["history"] if "tofu/model_utility" in row for key in row}
    assert measured_by(on_the_way) <= measured
    assert all(run["config"].keys() == unlearned["config"].keys() for run in study.values())


@pytest.mark.slow
def test_tables_a_figure_and_the_model_go_with_the_numbers(study):
    (run,) = [run for run in study.values() if run["run"].job_type == "unlearn"]
    tables = {file.name.split("_")[0]: file for file in run["folder"].rglob("*.table.json")}
    assert tables.keys() == {"results", "generations"}
    generations = json.loads(tables["generations"].read_text())
    rows = [dict(zip(generations["columns"], row, strict=True)) for row in generations["data"]]
    assert {row["set"] for row in rows} >= {"forget", "retain"}
    assert all(row["question"] for row in rows)
    assert max(sum(row["set"] == name for row in rows) for name in {row["set"] for row in rows}) <= 20
    (drawn,) = run["folder"].glob("files/media/plotly/figures/trade-off_*")
    traces = {trace["name"]: trace for trace in json.loads(drawn.read_text())["data"]}
    # The retain model has no forget quality, which is measured against it.
    assert traces.keys() == {"during training", "target", "unlearned"}
    results = read_json(run["directory"] / "results.json")
    assert traces["unlearned"]["x"] == [results["tofu/model_utility"]]
    models = [a for other in study.values() for a in other["artifacts"] if a.type == "model"]
    assert [model.name for model in models] == [run["directory"].name]  # not those that it was made from
    assert json.loads(models[0].metadata)["tofu/model_utility"] == results["tofu/model_utility"]
    assert "model.safetensors" in {entry.path for entry in models[0].manifest.contents}


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_in_its_wandb_run(study, children, tmp_path):
    root = next(iter(study.values()))["directory"].parent
    given = [
        *SMALL,
        f"root={root}",
        f"hydra.run.dir={tmp_path}/run",
        "eval=none",
        "checkpoint.every_steps=1000",
    ]
    long = [*given, "method.epochs=20", "eval.every_steps=null"]
    command = children.start(tmp_path, *long)
    history = tmp_path / "run" / "history.jsonl"
    assert command.until(lambda: history.is_file() and len(history.read_text().splitlines()) >= 3)
    command.send(signal.SIGTERM)
    assert command.ended().code == 75
    done(tmp_path, *long)
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    pieces = [read_run(file) for file in files]
    assert len(pieces) == 2
    assert pieces[0]["run"].run_id == pieces[1]["run"].run_id
    steps = [[row["_step"] for row in piece["history"] if "loss" in row] for piece in pieces]
    last = len(history.read_text().splitlines())
    assert steps[0] + steps[1] == list(range(1, last + 1))
    assert min(len(part) for part in steps) > 0
    with serving() as service:
        sent = _sync(service, tmp_path)
    assert sent == 0
    (rows,) = service.histories.values()
    assert [row["_step"] for row in rows if "loss" in row] == list(range(1, last + 1))


def _sync(service: Service, *roots: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in service.environment().items():
            patch.setenv(name, value)
        wandb.teardown()  # a command of its own has no settings of before
        code = sync.main([str(root) for root in roots])
    wandb.teardown()
    return code


# -- sending ------------------------------------------------------------------------------------------------


def offline(root: Path, run: str, *stamps: str) -> list[Path]:
    """Real offline folders of a run, renamed to these times."""
    folders = []
    for number, stamp in enumerate(stamps, start=1):
        tracker = open_tracker(
            TrackerConfig.model_validate({"mode": "offline"}),
            lambda: TrackedRun(run, run, "unlearn", "p", None, [], {}, root / run),
        )
        tracker.log({"loss": float(number)}, step=number)
        tracker.finish()
        made = (root / run / "wandb" / "latest-run").resolve()
        read_run(next(made.glob("*.wandb")))  # it is written to its end
        folders.append(made.rename(made.parent / f"offline-run-{stamp}-{run}"))
    return folders


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pieces")
    offline(root, "one", "20260102_000000", "20260103_000000")
    offline(root, "two", "20260101_000000")
    return root


@pytest.fixture
def runs(pieces, tmp_path) -> Path:
    shutil.copytree(pieces, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


ORDER = ["20260101_000000-two", "20260102_000000-one", "20260103_000000-one"]


def test_a_dry_run_lists_in_order_and_needs_no_key(runs, capsys):
    assert sync.main([str(runs), str(runs / "one"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert [output.index(name) for name in ORDER] == sorted(output.index(name) for name in ORDER)
    assert output.count("offline-run-") == 3  # named twice, listed once
    assert "3 to be sent" in output


def test_what_was_sent_and_what_still_runs_is_left_alone(runs):
    (runs / "two/wandb/offline-run-20260101_000000-two/run-two.wandb.synced").touch()
    with FileLock(runs / "one" / ".lock"):
        found = sync.offline_pieces([runs])
    assert [piece.state for piece in found] == ["already there", "still running", "still running"]
    assert [piece.state for piece in sync.offline_pieces([runs / "one"])] == ["to be sent"] * 2
    assert sync.offline_pieces([runs / "one/wandb/offline-run-20260102_000000-one"])[0].run_id == "one"


def test_without_a_key_a_folder_or_an_answer_nothing_is_tried(runs, tmp_path, monkeypatch, capsys):
    assert sync.main([str(tmp_path / "rums")]) == 2
    assert "rums: there is no such folder" in capsys.readouterr().err
    wandb.teardown()
    assert sync.main([str(runs)]) == 2
    output = capsys.readouterr().err
    assert "wandb login" in output
    assert "WANDB_API_KEY" in output
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    wandb.teardown()
    assert sync.main([str(runs)]) == 2
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    wandb.teardown()
    assert not list(runs.rglob("*.synced"))
    (tmp_path / "empty").mkdir()
    assert sync.main([str(tmp_path / "empty")]) == 0
    assert "no offline-run-* folder" in capsys.readouterr().out


@pytest.mark.slow
def test_one_failure_does_not_end_the_rest(runs, monkeypatch, capsys):
    """The first piece of a run is refused: the second must not stand in its place; the other run is sent."""
    monkeypatch.setenv("COLUMNS", "200")
    with serving() as service:
        service.refused = {"one"}
        assert _sync(service, runs) == 1
        output = capsys.readouterr().out
        assert "2 failed" in output
        assert "1 sent" in output
        assert "an earlier piece of this run was not sent" in output
        assert {file.name for file in runs.rglob("*.synced")} == {"run-two.wandb.synced"}
        service.refused = set()
        assert _sync(service, runs) == 0  # a second time sends what is missing
        assert "2 sent" in capsys.readouterr().out
    assert [row["loss"] for row in service.histories["one"]] == [1.0, 2.0]
    assert {run["program"] for run in service.runs} == {"unlearn", None}  # no path of the command
    sent = "\n".join(service.texts)
    assert str(runs) not in sent
    assert str(Path.home()) + "/" not in sent


# -- the saved view -----------------------------------------------------------------------------------------


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in found}


def view(measured: list[str], logged: list[str]) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces")
    return workspace.spec(workspace.workspace("team", "study", measured, logged))


def test_the_view_has_the_trade_off_the_dynamics_and_the_methods(tmp_path, capsys):
    pytest.importorskip("wandb_workspaces")
    out = tmp_path / "view.json"
    assert workspace.main(["--entity=team", "--project=study", f"--out={out}", str(tmp_path)]) == 0
    stored = json.loads(out.read_text())
    assert (stored["entity"], stored["project"]) == ("team", "study")
    panels = sections(stored)
    assert list(panels) == ["trade-off", "dynamics", "methods"]
    axes = [(panel["xAxis"], panel["yAxis"], panel.get("yAxisLogScale")) for panel in panels["trade-off"]]
    assert ("summary:tofu/model_utility", "summary:tofu/forget_quality", True) in axes
    assert ("summary:judged/utility", "summary:judged/forget_efficacy", None) in axes
    curves = [panel["metrics"] for panel in panels["dynamics"]]
    assert curves[0] == ["loss", "loss/forget", "loss/retain"]
    assert ["tofu/model_utility"] in curves
    bars = {panel["metrics"][0]: (panel["groupBy"], panel["groupAgg"]) for panel in panels["methods"]}
    assert bars["tofu/forget/probability"] == ("method.value.name", "mean")
    (table,) = stored["spec"]["section"]["runSets"]
    assert table["grouping"][0]["name"] == "method.value.name"
    assert table["runFeed"]["columnPinned"]["summary:tofu/forget_quality"]
    assert read_back(stored) == list(panels)


def read_back(stored: dict[str, Any]) -> list[str]:
    """Names of the sections, as the library reads what W&B would give it; its names for that are private."""
    import wandb_workspaces.workspaces as ws

    internal = pytest.importorskip("wandb_workspaces.workspaces.internal")
    if not hasattr(ws.Workspace, "_from_model"):
        pytest.skip("this version of wandb-workspaces reads views in another way")
    return [section.name for section in ws.Workspace._from_model(internal.View(**stored)).sections]


def test_panels_are_of_what_the_runs_have(tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (run / "results.json").write_text(json.dumps({"wmdp/bio/accuracy": 0.3, "mmlu/accuracy": 0.5}))
    rows = [{"step": 1, "loss": 1.0, "geffect/retain/all": 0.1, "geffect/unlearn/all": 0.2, "lr": 1e-5}]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = sections(view(*workspace.keys_of([tmp_path])))
    assert [panel["yAxis"] for panel in panels["trade-off"]] == ["summary:wmdp/bio/accuracy"]
    assert [panel["metrics"] for panel in panels["dynamics"]] == [["loss"], ["lr"]]
    assert [panel["metrics"] for panel in panels["geffect"]] == [
        ["geffect/retain/all"],
        ["geffect/unlearn/all"],
    ]


def test_with_a_key_the_view_is_saved(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    given = ["--entity=team", "--project=study", str(tmp_path)]
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    assert workspace.main(given) == 0  # no key
    assert "wandb login" in capsys.readouterr().out
    assert (tmp_path / "study-workspace.json").is_file()
    with serving() as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        assert workspace.main(given) == 0
    wandb.teardown()
    (saved,) = service.views
    assert "trade-off" in json.dumps(saved)
    assert "team/study" in capsys.readouterr().out


def test_without_the_library_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert workspace.main(["--entity=team", "--project=study"]) == 2
    assert "unlearn-lab[wandb]" in capsys.readouterr().err
