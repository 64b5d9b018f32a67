"""A probe in whole runs: during training, over the saved models of the same run, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.launch.commands import done, unlearn
from tests.tolerance import PASS, approx

pytestmark = pytest.mark.slow

PROBE = ["probe=geffect", "probe.examples=6", "probe.points=2", "probe.grid=2"]
QUICK = ["eval=none", "tracker=disabled", "hardware.threads=1"]
TRAIN = "train: ['*.mlp.*']"
OF_A_PART = (
    f"{{name: npo, forget: {{objective: npo, beta: 0.1}}, retain: {{objective: nll}}, lr: 1e-5, {TRAIN}}}"
)


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory, saved: Path) -> tuple[Path, list[str]]:
    cwd = tmp_path_factory.mktemp("probe")
    model = ["model=local", f"model.path={saved}", *QUICK]
    steps = ["method.steps=4", "checkpoint.models_every=2", "probe.every=2"]
    done(cwd, *model, "method=npo", "method.train=[*.mlp.*]", *PROBE, *steps)
    return cwd, model


def seen(run: Path) -> dict[int, dict[str, float]]:
    rows = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    passing = {"step", "epoch", "geffect/seconds"}
    return {
        row["step"]: {k: v for k, v in row.items() if k not in passing}
        for row in rows
        if "geffect/unlearn" in row
    }


def test_probing_in_training_and_over_saved_models_is_the_same(looked):
    cwd, model = looked
    (live,) = (cwd / "runs").glob("npo-*")
    assert sorted(path.name for path in (live / "models").iterdir()) == ["step-2", "step-4"]
    saved = f"probe.models=[{live}/models/step-*]"
    done(cwd, *model, "method=none", f"probe.method={OF_A_PART}", *PROBE, saved)
    (after,) = (path for path in (cwd / "runs").glob("none-*") if (path / "geffect").is_dir())
    first, second = seen(live), seen(after)
    assert sorted(first) == [0, 2, 4]
    assert sorted(second) == [2, 4]
    for step, row in second.items():
        assert row.keys() == first[step].keys()
        for key, value in row.items():
            assert value == approx(first[step][key], terms=PASS), (step, key)
    report = (after / "report.html").read_text()
    assert "G-effect" in report


def test_a_watched_run_has_a_folder_of_its_own_and_the_same_model(looked):
    cwd, model = looked
    (live,) = (cwd / "runs").glob("npo-*")
    done(cwd, *model, "method=npo", "method.train=[*.mlp.*]", "method.steps=4")
    (plain,) = set((cwd / "runs").glob("npo-*")) - {live}
    weights = [run / "model" / "model.safetensors" for run in (live, plain)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (live / "geffect" / "start.safetensors").exists()
    assert {path.name for path in (live / "geffect" / "step-000002").iterdir()} == {
        f"{name}.parquet" for name in ("layers", "examples", "tokens", "grid")
    }


def test_without_an_objective_there_is_nothing_to_measure(looked):
    cwd, model = looked
    shown = unlearn(cwd, *model, "method=none", *PROBE)
    assert shown.code == 2
    assert "probe.method is not set" in shown.err


@pytest.mark.parametrize(
    "kind", [["method=npo", "model.lora.r=4"], ["method=grun"]], ids=["adapters", "edit"]
)
def test_adapters_and_edits_are_measured_over_trained_parameters(looked, kind):
    cwd, model = looked
    root = f"root=runs-{kind[-1].rpartition('=')[2]}"
    done(cwd, *model, *kind, *PROBE, "method.steps=2", "probe.every=2", root)
    (run,) = (p.parent for p in (cwd / root.partition("=")[2]).glob("*/geffect"))
    rows = seen(run)
    assert sorted(rows) == [0, 2]
    assert rows[2]["geffect/distance"] > 0
    assert rows[2]["geffect/unlearn"] != 0
    table = pq.read_table(run / "geffect/step-000002/layers.parquet").to_pylist()
    mark = "lora_" if "model.lora.r=4" in kind else "interventions."
    assert table
    assert all(mark in row["parameter"] for row in table)
    assert {row["group"] for row in table} <= {"shallow", "middle", "deep", "other"}
