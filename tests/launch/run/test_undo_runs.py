"""UNDO as a user starts it: a run of another method, then distillation into its damaged copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.run.config_file import read_job
from tests.launch import commands
from unlearn.models.corrupt import corrupted
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.slow

TINY = (
    "dataset.options.authors=10", "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2",
    "model.finetune.steps=4", "method=undo", "method.batch=4", "method.steps=2", "method.warmup_steps=0",
    "method.unlearned.keys.steps=2", "eval.limit=4", "eval.benchmarks.tofu.generation=false",
    "eval.benchmarks.tofu.mia=false", "hardware.threads=1", "tracker=disabled",
)  # fmt: skip
RETAIN = "tofu/retain/probability"


def runs(cwd: Path, pattern: str) -> list[RunDir]:
    return [RunDir(path) for path in sorted(cwd.glob(f"runs/{pattern}"), key=lambda p: p.stat().st_mtime)]


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undo")


@pytest.fixture(scope="module")
def same(cwd: Path) -> RunDir:
    """Without damage and with a rate of nearly nothing the student stays its teacher."""
    commands.done(cwd, *TINY, "method.unlearned.alpha=0", "method.lr=1e-12", "eval=none")
    (run,) = runs(cwd, "undo-*")
    return run


def test_an_undamaged_student_is_its_teacher(cwd, same):
    (teacher,) = runs(cwd, "me_gd-*")
    job, _ = read_job(same)
    assert job.unlearned is not None
    assert Path(str(job.unlearned.source)).name == "model"
    assert job.unlearned.key == f"run:{read_job(teacher)[0].fingerprint}"
    losses = [row["loss"] for row in same.read_history() if "loss" in row]
    assert len(losses) == 2
    assert max(map(abs, losses)) < 1e-6


def test_two_processes_that_share_the_teacher_out_give_the_same(cwd, same):
    shutil.rmtree(cwd / "runs" / "cache")  # of the teacher's outputs and its head
    commands.done(
        cwd, *TINY, "method.unlearned.alpha=0", "method.lr=1e-12", "eval=none", "hardware=cpu-2p",
        "hardware.zero=3", "hydra.run.dir=shared",
    )  # fmt: skip
    assert (
        "without an optimizer is shared out over the processes (2)"
        in (cwd / "shared" / "run.log").read_text()
    )
    losses = [row["loss"] for row in RunDir(cwd / "shared").read_history() if "loss" in row]
    assert len(losses) == 2
    assert max(map(abs, losses)) < 1e-6


def test_a_damaged_student_learns_from_the_same_teacher(cwd, same):
    (teacher,) = runs(cwd, "me_gd-*")
    trained = teacher.results.stat().st_mtime_ns
    select = f"eval.select={{rule: within, utility: {RETAIN}, tolerance: 0.5, share: 0.5}}"
    shown = commands.done(
        cwd, *TINY, "method.unlearned.alpha=0.5", "method.unlearned.beta=0.1", "method.lr=1e-12",
        "eval.every_steps=1", select,
    )  # fmt: skip
    assert teacher.results.stat().st_mtime_ns == trained
    assert "evaluate the unlearned model" in shown.out + shown.err
    run = next(each for each in runs(cwd, "undo-*") if each.path != same.path)
    assert [row["loss"] > 1e-3 for row in run.read_history() if "loss" in row] == [True, True]
    start, made = (load_file(each.model / "model.safetensors") for each in (teacher, run))
    for name, value in start.items():
        expected = corrupted(value, name, alpha=0.5, beta=0.1, seed=0)
        assert float((made[name] - expected).abs().max()) < 1e-6, name
    # The rule compares with the teacher, not with the target.
    teachers = read_job(run)[0].baselines.unlearned
    assert teachers is not None
    reached = json.loads((cwd / teachers / "selection.json").read_text())["metrics"][RETAIN]
    assert run.read_selection()["bound"] == pytest.approx(0.5 * reached)


def test_a_run_that_another_starts_from_keeps_its_model_and_its_results(cwd, same):
    (teacher,) = runs(cwd, "me_gd-*")
    no_student = [one for one in TINY if not one.startswith(("method", "eval.benchmarks"))]
    own = (
        *no_student, "method=me_gd", "method.steps=2", "eval=tofu", "eval.compare=false", "save_model=false",
        "eval.benchmarks.tofu={generation: false, mia: false, gradients: false}",
    )  # fmt: skip
    commands.done(cwd, *own)
    assert teacher.model.is_dir()  # it was made to be kept, for the student
    measured = teacher.read_results()
    assert RETAIN in measured

    teacher.config.write_text(teacher.config.read_text().replace("save_model: true", "save_model: false"))
    shutil.rmtree(teacher.model)
    student = (*TINY, "method.unlearned.alpha=0", "method.lr=1e-11", "eval=none")
    commands.done(cwd, *student)
    assert teacher.read_results()[RETAIN] == measured[RETAIN]
    assert read_job(teacher)[1] == "run"

    shutil.rmtree(teacher.model)
    shown = commands.done(cwd, *student)  # complete: what it started from is needed no longer
    assert "me_gd" not in shown.out
    assert not teacher.model.exists()
