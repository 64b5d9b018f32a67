"""A run that chooses the step of its model (`eval.select`), as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.launch import commands
from tests.launch.commands import Shown
from tests.unlearn.training.test_step_selection import same
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.slow

FORGET, RETAIN = "tofu/forget/probability", "tofu/retain/probability"
TINY = (
    "dataset.options.authors=10", "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2",
    "model.finetune.steps=4", "method=grad_ascent", "method.batch=4", "method.steps=3", "method.lr=1e-2",
    "method.schedule=constant", "method.warmup_steps=0", "eval.limit=6", "hardware.threads=1",
    "eval.benchmarks.tofu.generation=false", "eval.benchmarks.tofu.mia=false", "tracker=disabled",
    "eval.every_steps=1", "checkpoint.models_every=1",
)  # fmt: skip
CALIBRATED = "eval=[tofu,calibrated]", f"eval.variants.calibrated={{metric: {RETAIN}, passes: 1}}"
SELECT = f"eval.select.metric={FORGET}", f"eval.select.utility={RETAIN}", "eval.select.share=0.5"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Shown]:
    """Ascent at a high rate: the retain set falls by ten orders of magnitude with each step."""
    cwd = tmp_path_factory.mktemp("chosen")
    rule = "eval.select.rule=best_above_floor", "eval.select.floor='1e-4 target'"
    shown = commands.done(cwd, *TINY, *rule, *SELECT, *CALIBRATED)
    (run,) = cwd.glob("runs/grad_ascent-*")
    return RunDir(run), shown


def ids(folder: Path) -> dict[str, set[str]]:
    sets: dict[str, set[str]] = {}
    for row in pq.read_table(folder / "tofu" / "examples.parquet").to_pylist():
        sets.setdefault(row["set"], set()).add(row["id"])
    return sets


def test_selection_items_are_calibrated_by_themselves(done):
    run, _ = done
    results, folder = run.read_results(), run.eval / "calibrated"
    # A probe has half of the way to a broken model: no more of it than nothing keeps 95 %.
    assert results["calibrated/alpha"] in (0, 0.5)
    assert results["calibrated/selection/alpha"] in (0, 0.5)
    assert f"calibrated/selection/{FORGET}" in results
    probes = ids(folder / "selection" / "probe-0.5"), ids(folder / "probe-0.5")
    of_run = ids(run.eval / "step-1"), ids(run.eval)
    assert [each["retain"] for each in probes] == [each["retain"] for each in of_run]


def test_the_model_is_that_of_the_chosen_step(done):
    run, _ = done
    stored = run.read_selection()
    assert (stored["chosen"], stored["met"], list(stored["steps"])) == (1, True, ["1", "2", "3"])
    made, at_one = (load_file(folder / "model.safetensors") for folder in (run.model, run.models / "step-1"))
    assert same(made, at_one)
    assert not run.selection.exists()


def test_no_example_is_both_selected_on_and_reported(done):
    run, _ = done
    selected, reported = ids(run.eval / "step-1"), ids(run.eval)
    assert selected.keys() == reported.keys()
    for name in reported:
        assert len(selected[name]) == len(reported[name]) == 3
        assert selected[name].isdisjoint(reported[name])


def test_what_the_run_says_of_the_choice(done):
    run, _ = done
    results, stored = run.read_results(), run.read_selection()
    assert results["select/step"] == 1
    assert results["select/value"] == stored["steps"]["1"][FORGET]
    assert results["select/last_value"] == stored["steps"]["3"][FORGET]
    rows = {row["step"]: row for row in run.history_by_step()}
    assert rows[3][RETAIN] == results["select/last_utility"]
    sentence = f"step 1 of 3 (rule best_above_floor: the most forgotten by {FORGET} with {RETAIN} at"
    card = " ".join(ModelCard.load(run.model / "README.md").text.split())
    for text in (" ".join((run.path / "report.html").read_text().split()), card):
        assert sentence in text
        assert "15 selection examples (50% of each set), which the results leave out" in text


def test_models_that_runs_are_compared_with_are_measured_on_the_same_items(done):
    run, _ = done
    compared = [RunDir(path) for path in run.path.parent.glob("none-*")]
    assert len(compared) == 2
    for other in compared:
        assert ids(other.eval) == ids(run.eval)
        assert ids(other.eval / "selection") == ids(run.eval / "step-1")
        assert other.read_selection()["metrics"][RETAIN] != other.read_results()[RETAIN]


def test_another_rule_is_another_run_and_the_models_to_compare_with_stay(done):
    run, _ = done
    before = {path: path.stat().st_mtime_ns for path in run.path.parent.glob("none-*/results.json")}
    cwd = run.path.parents[1]
    shown = commands.done(
        cwd, *TINY, "eval.select.rule=first_below_retain", *SELECT, *CALIBRATED, "method.steps=1"
    )
    assert "no step meets the rule" not in shown.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (other,) = (RunDir(p) for p in cwd.glob("runs/grad_ascent-*") if p != run.path)
    assert json.loads(other.selection_file.read_text())["chosen"] == 1
