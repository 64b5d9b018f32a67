"""The models of the steps that a rule chooses among: which are kept, and which one becomes the run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tolerance import assert_trained_alike
from tests.unlearn.training import selected_training as selected
from tests.unlearn.training import small_training as training
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.distributed import ALONE
from unlearn.errors import UserError
from unlearn.run_dir import RunDir
from unlearn.training.step_selection import StepSelection


def model(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kept(directory: Path) -> set[str]:
    return {path.name for path in RunDir(directory).selection.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    selected.train(directory)
    return directory


def test_the_model_is_that_of_the_chosen_step(whole, tmp_path):
    stored = RunDir(whole).read_selection()
    assert (stored["chosen"], stored["met"]) == (6, True)
    assert {int(step): row["value"] for step, row in stored["steps"].items()} == selected.VALUES
    training.train(tmp_path, HardwareConfig(), stop_after=6)
    _, tensors = RunDir(tmp_path).load_checkpoint() or ({}, {})
    at_six = {name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")}
    made = model(whole)
    assert same({name: at_six[name] for name in made}, made)
    assert not RunDir(whole).selection.exists()


def test_a_continued_training_has_the_models_that_it_may_choose(whole, tmp_path):
    selected.train(tmp_path, checkpoint_at=5, stop_after=7)
    assert kept(tmp_path) == {"step-4", "step-6"}  # after step 5 the best so far is step 4 again
    selected.train(tmp_path)
    assert RunDir(tmp_path).read_selection() == RunDir(whole).read_selection()
    assert same(model(tmp_path), model(whole))


def test_a_training_that_begins_anew_measures_anew(whole, tmp_path):
    selected.train(tmp_path, stop_after=7)
    assert kept(tmp_path) == {"step-6"}
    selected.train(tmp_path)
    assert same(model(tmp_path), model(whole))


def test_where_no_step_meets_the_rule_it_is_the_last(tmp_path):
    selection = selected.train(tmp_path, floor=2.0)
    assert (selection.choice.step, selection.choice.met) == (9, False)
    assert not RunDir(tmp_path).selection.exists()  # no model on the way was saved
    trained, made = training.train(tmp_path / "plain", HardwareConfig()), model(tmp_path)
    assert same(made, {name: trained[name] for name in made})


def test_values_that_could_not_be_measured_are_read_back(tmp_path):
    values = {**selected.VALUES, 2: float("nan")}
    selected.train(tmp_path, values=values, stop_after=3)
    selection = StepSelection(RunDir(tmp_path), ALONE, selected.Largest(), lambda model, adapter: None)
    (only,) = selection.candidates
    assert only.step == 2
    assert only.metrics["value"] != only.metrics["value"]


def test_a_metric_that_was_not_measured_is_named(tmp_path):
    selection = StepSelection(RunDir(tmp_path), ALONE, selected.Largest(), lambda model, adapter: None)
    with pytest.raises(UserError, match="step 2 has no value"):
        selection.add(2, {"other": 1.0}, last=False)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_several_processes_choose_and_save_alike(whole, tmp_path, zero):
    together(2, selected.run, tmp_path, {"processes": 2, "zero": zero})
    assert RunDir(tmp_path).read_selection() == RunDir(whole).read_selection()
    assert_trained_alike(model(tmp_path), model(whole), lr=training.METHOD.lr, steps=6)
