"""How far a plan is, and how long the rest takes."""

from __future__ import annotations

import pytest

from launch.compose import checked, compose_run, force_overrides
from launch.run.plan import make_plan
from launch.run.plan_progress import Estimate, PlanProgress, Work, duration, estimate, work_of
from unlearn.data.sources import load_sets

SETS = ("full", "forget", "retain")
TRAINING, EVALUATION = Work(100.0, 0), Work(0.0, 1)


def test_training_and_evaluation_are_estimated_apart():
    both = Work(50.0, 3)
    assert estimate([], [both]) is None
    assert estimate([(TRAINING, 20.0)], [EVALUATION]) is None
    assert estimate([(TRAINING, 20.0)], [TRAINING, EVALUATION]) == Estimate(20.0, whole=False)
    assert estimate([(TRAINING, 20.0), (EVALUATION, 4.0)], [EVALUATION, both]) == Estimate(26.0, whole=True)
    assert estimate([(EVALUATION, 4.0)], [both]) == Estimate(12.0, whole=False)


def test_what_the_runs_of_the_default_do():
    """Two runs train the target and the retain model, two evaluate them; the main run reads two sets."""
    plan = make_plan(
        checked(compose_run(force_overrides(["dataset.options.authors=20", "eval.every_steps=4"])))
    )
    method, finetune = plan.main.job.config.method, plan.runs[0].job.config.method
    assert [run.role.split()[0] for run in plan.runs] == ["build", "build", "evaluate", "evaluate", "run"]
    target, retain, of_retain, of_target, main = map(work_of, plan.runs)
    assert of_retain == of_target == EVALUATION
    assert target.evaluations == retain.evaluations == 0
    rows = {name: len(some) for name, some in load_sets(plan.main.job.config.dataset, SETS).items()}
    assert rows["full"] > rows["retain"] > rows["forget"]
    assert target.sequences == finetune.epochs * rows["full"]
    assert retain.sequences == finetune.epochs * rows["retain"]
    assert main.sequences == method.epochs * rows["forget"] * 2
    assert main.evaluations == 1 + method.epochs // 4  # an epoch is a step


def test_nothing_is_said_of_time_before_a_run_was_made(tmp_path):
    plan = make_plan(checked(compose_run(force_overrides([f"root={tmp_path}"]))))
    assert PlanProgress(plan).line() == "0/5 runs done"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "5 s"), (31.0, "35 s"), (89.0, "90 s"), (100.0, "2 min"), (5000.0, "83 min"), (9000.0, "2.5 h")],
)
def test_a_duration_is_as_coarse_as_an_estimate(seconds, text):
    assert duration(seconds) == text
