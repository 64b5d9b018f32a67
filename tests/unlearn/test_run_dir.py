"""The files of a run: history and results, written and read back."""

from __future__ import annotations

import math
import shutil
from threading import Timer

import pytest
import torch

from unlearn.errors import UserError
from unlearn.files import BrokenFile
from unlearn.run_dir import RunDir, numbers


def test_the_history_by_step_has_the_last_value_of_each_key(tmp_path):
    run = RunDir(tmp_path)
    assert run.history_by_step() == []
    for row in ({"step": 2, "loss": 0.5}, {"step": 1, "loss": 1.0, "lr": 0.1}, {"step": 1, "loss": math.nan}):
        run.append_history(row)
    with run.history.open("a") as file:
        file.write('{"step": 3, "lo')
    assert len(run.read_history()) == 3
    assert run.history_by_step() == [{"step": 1, "loss": None, "lr": 0.1}, {"step": 2, "loss": 0.5}]


def test_a_broken_line_of_the_history_is_named(tmp_path):
    run = RunDir(tmp_path)
    run.history.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(BrokenFile, match=r"history\.jsonl is broken \(line 2 is not JSON"):
        run.read_history()


def test_results_come_back_with_null_for_what_was_not_measured(tmp_path):
    run = RunDir(tmp_path)
    assert run.read_results() == {}
    run.write_results({"a": 0.5, "b": math.nan, "c": 3})
    assert run.read_results() == {"a": 0.5, "b": None, "c": 3}
    assert numbers({"text": "x", "flag": True, "inf": math.inf, "n": 1}) == {"inf": None, "n": 1}
    run.results.write_text("[]")
    with pytest.raises(BrokenFile, match=r"results\.json is broken"):
        run.read_results()


def test_a_model_whose_removal_is_killed_is_no_model(tmp_path, monkeypatch):
    rundir = RunDir(tmp_path)
    rundir.model.mkdir()
    (rundir.model / "config.json").touch()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            rundir.drop_model()
    assert not rundir.model.exists()
    rundir.clear_leftovers()
    assert list(tmp_path.iterdir()) == []


def test_a_process_waits_for_the_checkpoint_that_the_first_one_chose(tmp_path):
    """Another node sees a new folder later."""
    rundir = RunDir(tmp_path)
    with pytest.raises(UserError, match=r"step-4, which this one cannot read .*all nodes see"):
        rundir.wait_for_checkpoint(4, seconds=0)
    state = [("w", {"weight": torch.ones(2)})]
    writer = Timer(0.5, lambda: rundir.save_checkpoint(4, state, {}, keep=1, write=True))
    writer.start()
    facts, tensors = rundir.wait_for_checkpoint(4)
    writer.join()
    assert facts["step"] == 4
    assert tensors["weight/w"].tolist() == [1, 1]
