"""What a method that unlearns first cannot be, and what does not go with it, is refused before any run."""

from __future__ import annotations

from typing import Any

import pytest

from launch.compose import checked, compose_run, force_overrides
from launch.run.plan import make_plan
from launch.validate.unlearned import unlearned_problems
from unlearn.config import LoraConfig, MethodConfig, RunConfig


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return checked(compose_run(force_overrides(["method=undo", "tracker=disabled"])))


def problems(config: RunConfig, first: dict[str, Any], **keys: Any) -> list[str]:
    values = {**config.method.model_dump(), "unlearned": {"alpha": 0.25, **first}, **keys}
    return unlearned_problems(config.model_copy(update={"method": MethodConfig.model_validate(values)}))


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ({"method": "me_dg"}, "there is no configs/method/me_dg.yaml (did you mean me_gd"),
        ({"method": "me_gd", "keys": {"epoch": 3}}, "method.unlearned.keys"),
        (
            {"method": "me_gd", "keys": {"forget": {"objective": "max_entrop"}}},
            "method.unlearned.keys.forget",
        ),
        ({"method": "none"}, "method.unlearned.method=none: unlearns nothing"),
        ({"method": "finetune"}, "method.unlearned.method=finetune: unlearns nothing"),
        ({"method": "whp"}, "method.unlearned.method=whp: "),
        ({"method": "grun"}, "method.unlearned.method=grun: changes what the model computes"),
        ({"method": "undo"}, "method.unlearned.method=undo: has itself a method that unlearns first"),
    ],
)
def test_a_first_method_that_leaves_no_weights_to_start_from(config, first, says):
    (problem,) = problems(config, first)
    assert says in problem


def test_what_does_not_go_with_it(config):
    first = {"method": "me_gd"}
    assert problems(config, first) == []
    assert "method.update_scale=2.0" in problems(config, first, update_scale=2.0)[0]
    assert "method.retain=kl" in problems(config, first, retain=None)[0]
    lora = config.model.model_copy(update={"lora": LoraConfig(r=4)})
    (problem,) = unlearned_problems(config.model_copy(update={"model": lora}))
    assert "model.lora.r=4: does not go with method.unlearned" in problem


def test_damage_makes_another_run_of_the_same_teacher(config):
    def plan(**keys: float) -> tuple[str, str]:
        first = config.method.unlearned.model_copy(update=keys)
        changed = config.method.model_copy(update={"unlearned": first})
        made = make_plan(config.model_copy(update={"method": changed}))
        (teacher,) = (run for run in made.runs if run.role == "unlearn first")
        assert made.main.job.unlearned is not None
        assert made.main.job.unlearned.source == str(teacher.rundir.model)
        return teacher.job.fingerprint, made.main.job.fingerprint

    (teacher, mild), (same, strong) = plan(), plan(alpha=0.5)
    assert teacher == same
    assert mild != strong


def test_the_teacher_is_the_run_that_its_method_makes_alone(config):
    teacher = next(run for run in make_plan(config).runs if run.role == "unlearn first")
    alone = make_plan(checked(compose_run(force_overrides(["method=me_gd", "tracker=disabled"]))))
    assert teacher.job.fingerprint == alone.main.job.fingerprint
    assert teacher.directory == alone.main.directory
