"""config.yaml of a run: reading it returns what was written."""

from __future__ import annotations

import math
import re

import pytest
from omegaconf import OmegaConf

from launch.compose import checked, compose_run
from launch.config_groups import CONFIGS
from launch.run import config_file
from launch.run.config_file import check_folder, read_config, read_job, trained_with, write_config
from launch.run.plan import make_plan
from tests.file_limit import no_files_above
from unlearn.config import Section
from unlearn.errors import UserError
from unlearn.files import NoRoom
from unlearn.run_dir import RunDir

ODD = "a: 1e-5\nb: 2026-01-01\nc: '1e-5'\nd: -2.5E+3\ne: 1_000\nf: yes\ng: ~\nh: .inf\n"


@pytest.mark.parametrize("probe", ["none", "geffect"])
def test_a_job_comes_back_as_it_was_planned(tmp_path, probe):
    planned = make_plan(checked(compose_run([f"++root={tmp_path}", f"probe={probe}"]))).main
    write_config(planned)
    assert read_job(planned.rundir) == (planned.job, planned.role)
    text = planned.rundir.config.read_text()
    planned.rundir.config.write_text(re.sub(r"fingerprint: \w+", "fingerprint: other", text))
    with pytest.raises(UserError, match="holds another run"):
        write_config(planned)


def test_results_stay_where_the_configuration_finds_no_room(tmp_path):
    planned = make_plan(checked(compose_run([f"++root={tmp_path}"]))).main
    write_config(planned)
    before = planned.rundir.config.read_text()
    planned.rundir.results.write_text("{}")
    with no_files_above(64), pytest.raises(NoRoom):
        write_config(planned)
    assert planned.rundir.results.is_file()
    assert planned.rundir.config.read_text() == before


def test_a_chosen_folder_is_empty_or_holds_a_run(tmp_path):
    check_folder(tmp_path / "new")
    planned = make_plan(checked(compose_run([f"++root={tmp_path}"]))).main
    planned.directory.mkdir()
    (planned.directory / ".lock").touch()
    check_folder(planned.directory)  # of a process that was killed at once
    write_config(planned)
    (planned.directory / "notes.txt").touch()
    check_folder(planned.directory)
    planned.rundir.config.write_text("name: a project\n")
    with pytest.raises(UserError, match=r"its config\.yaml is not of a run"):
        check_folder(planned.directory)
    planned.rundir.config.unlink()
    with pytest.raises(UserError, match=r"the folder holds no run, but notes\.txt"):
        check_folder(planned.directory)


def test_a_target_may_be_trained_on_the_retain_split(tmp_path):
    plan = make_plan(checked(compose_run([f"++root={tmp_path}", "++dataset.full=retain", "method=none"])))
    assert {run.job.config.dataset.full for run in plan.runs if run.role.startswith("build")} == {"retain"}


def test_a_default_that_config_yaml_cannot_hold_is_refused():
    with pytest.raises(TypeError, match=r"Own\.cap=inf: a default .* must be finite"):

        class Own(Section):
            cap: float = math.inf


def test_where_there_is_no_git_a_run_is_made_all_the_same(tmp_path, monkeypatch):
    planned = make_plan(checked(compose_run([f"++root={tmp_path}"]))).main
    monkeypatch.setenv("PATH", str(tmp_path))
    config_file._git_revision.cache_clear()
    try:
        write_config(planned)
    finally:
        config_file._git_revision.cache_clear()
    assert read_config(planned.rundir)["git"] is None


def test_the_precision_of_a_training_outlasts_an_evaluation_in_another(tmp_path):
    trained, evaluated = (
        make_plan(checked(compose_run([f"++root={tmp_path}", f"++hardware.dtype={dtype}"]))).main
        for dtype in ("fp32", "bf16")
    )
    write_config(trained)
    trained.rundir.model.mkdir()
    for run in (evaluated, evaluated, trained):
        write_config(run)
        stored = read_config(run.rundir)
        assert stored["hardware"]["dtype"] == run.job.config.hardware.dtype
        assert trained_with(stored)["dtype"] == "fp32"


def test_options_of_a_probe_that_is_off_and_a_label_of_the_tracker_are_read(tmp_path):
    """Earlier runs have them."""
    planned = make_plan(checked(compose_run([f"++root={tmp_path}"]))).main
    write_config(planned)
    values = OmegaConf.load(planned.rundir.config)
    values.probe.examples, values.tracker.name = 32, "offline"
    OmegaConf.save(values, planned.rundir.config)
    job, _ = read_job(planned.rundir)
    assert make_plan(job.config).main.job.fingerprint == job.fingerprint


def test_values_have_the_types_that_omegaconf_gives(tmp_path):
    run = RunDir(tmp_path)
    texts = [ODD, *(file.read_text(encoding="utf-8") for file in sorted(CONFIGS.glob("[a-z]*/*.yaml")))]
    for text in texts:
        run.config.write_text(text, encoding="utf-8")
        assert repr(read_config(run)) == repr(OmegaConf.to_container(OmegaConf.create(text)))
