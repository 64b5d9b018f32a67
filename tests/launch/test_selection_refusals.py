"""What `eval.select` cannot do is refused before anything is loaded, and what it may flatter is said."""

from __future__ import annotations

from typing import Any

import pytest

from launch.compose import checked, compose_run, force_overrides
from launch.inspection import measured_steps, schedule_of
from launch.run.plan import make_plan
from launch.validate import check, warnings_of
from launch.validate.selection import selection_problems
from unlearn.config import EvalConfig, RunConfig, SmoothConfig
from unlearn.data.sources import available
from unlearn.errors import ConfigError, UserError

FORGET, RETAIN = "tofu/forget/probability", "tofu/retain/probability"


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return checked(compose_run(force_overrides(["eval.every_steps=2", "tracker=disabled"])))


def changed(config: RunConfig, select: dict[str, Any] | None, **keys: Any) -> RunConfig:
    values = {**config.eval.model_dump(), "select": select or {}, **keys}
    return config.model_copy(update={"eval": EvalConfig.model_validate(values)})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no rule": ({"metric": FORGET}, {}, "eval.select.rule is not set: eval.select.metric needs one"),
    "no evaluations": ({"rule": "last"}, {"every_steps": None}, "eval.every_steps is not set"),
    "no metric": ({"rule": "first_below_retain"}, {}, "eval.select.metric is not set"),
    "no utility": ({"rule": "within"}, {}, "eval.select.utility is not set"),
    "no floor": (
        {"rule": "best_above_floor", "metric": FORGET, "utility": RETAIN}, {}, "eval.select.floor is not set",
    ),
    "no step": ({"rule": "fixed"}, {}, "eval.select.step is not set"),
    "a step that is not evaluated": (
        {"rule": "fixed", "step": 3}, {}, "eval.select.step=3 is not evaluated: eval.every_steps=2",
    ),
    "a floor that is not read": ({"rule": "last", "floor": 0.5}, {}, "eval.select.floor=0.5"),
    "a misspelt metric": (
        {"rule": "first_below_retain", "metric": "tofu/forget/probabilty"}, {},
        "no benchmark of eval, with its options, gives it (did you mean tofu/forget/probability",
    ),
    "a metric of another benchmark": (
        {"rule": "first_below_retain", "metric": "muse/forget/knowmem"}, {},
        "no benchmark of eval, with its options, gives it",
    ),
    "a metric that an option leaves out": (
        {"rule": "within", "utility": "tofu/model_utility"},
        {"benchmarks": {"tofu": {"memorization_only": True}}}, "with its options, gives it",
    ),
    "no benchmark": ({"rule": "within", "utility": RETAIN}, {"benchmarks": {}}, "no benchmark of eval"),
    "utility that is forgetting": (
        {"rule": "within", "utility": FORGET}, {}, f"utility={FORGET}: it is no metric of utility",
    ),
    "forgetting that is utility": (
        {"rule": "first_below_retain", "metric": RETAIN}, {}, "no metric of how much is forgotten",
    ),
    "examples of a library": (
        {"rule": "within", "utility": "general/wikitext/word_perplexity"},
        {"benchmarks": {"general": {}}}, "benchmark general has no examples that can be divided",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(config, name):
    select, keys, says = REFUSED[name]
    problems = selection_problems(changed(config, select, **keys), set(available(config.dataset)))
    assert len(problems) == 1
    assert says in problems[0]


def test_a_chosen_step_is_not_what_the_next_request_starts_from(config):
    select = {"rule": "fixed", "step": 2}
    rows = config.dataset.model_copy(
        update={"source": "muse", "name": "muse-news", "forget": "sust/forget_3"}
    )
    (problem,) = selection_problems(changed(config, select).model_copy(update={"dataset": rows}), set())
    assert "starts from the last step of the one before" in problem
    assert selection_problems(changed(config, select), set()) == []


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"update_scale": 5.0}, "method.update_scale=5.0"),
        ({"smooth": SmoothConfig(name="average")}, "method.smooth.name=average"),
    ],
)
def test_a_model_made_after_the_last_step_is_not_what_is_measured(config, update, says):
    method = config.method.model_copy(update=update)
    chosen = changed(config, {"rule": "last"}).model_copy(update={"method": method})
    (problem,) = selection_problems(chosen, set(available(config.dataset)))
    assert says in problem


def test_a_model_that_is_scaled_at_the_end_is_not_measured_on_the_way() -> None:
    with pytest.raises(ConfigError, match=r"eval\.every_steps=5: with method\.update_scale=-5"):
        check(checked(compose_run(force_overrides(["method=task_vector", "eval.every_steps=5"]))))


def test_the_check_of_a_configuration_reports_it():
    with pytest.raises(ConfigError, match=r"eval\.every_steps is not set"):
        check(checked(compose_run(force_overrides(["eval.select.rule=last"]))))


@pytest.mark.parametrize(
    ("select", "keys", "of"),
    [
        ({"rule": "first_below_retain", "metric": FORGET}, {"compare": False}, "retain model"),
        ({"rule": "within", "utility": RETAIN}, {"compare": False}, "target"),
    ],
)
def test_a_rule_needs_the_model_that_it_compares_with(config, select, keys, of):
    with pytest.raises(ConfigError, match=f"compares with the {of}, which this run does not evaluate"):
        make_plan(changed(config, select, **keys))
    make_plan(changed(config, select))


def test_the_rule_is_part_of_a_run_and_of_what_it_is_compared_with_only_the_division(config):
    def plan(select: dict[str, Any] | None) -> tuple[str, set[tuple[str, str]]]:
        made = make_plan(changed(config, select))
        compared = [run for run in made.runs if run.role.startswith("evaluate ")]
        return made.main.job.fingerprint, {(run.job.fingerprint, run.evaluation_key) for run in compared}

    last, fixed = plan({"rule": "last"}), plan({"rule": "fixed", "step": 2})
    plain, whole = plan(None), plan({"rule": "last", "on": "reported"})
    assert len({last[0], fixed[0], plain[0], whole[0]}) == 4
    assert last[1] == fixed[1] != plain[1]
    assert whole[1] == plain[1]


def test_warnings(config):
    def warnings(select: dict[str, Any]) -> list[str]:
        return [text for text in warnings_of(changed(config, select)) if text.startswith("eval.select")]

    assert warnings({"rule": "within", "utility": RETAIN}) == []
    (flattered,) = warnings({"rule": "within", "utility": RETAIN, "on": "reported"})
    assert "eval.select.on=reported: the step is chosen on the examples that are reported" in flattered


@pytest.mark.parametrize("length", [{}, {"steps": 20}], ids=["epochs", "steps"])
def test_a_step_after_the_last_one_is_neither_chosen_nor_measured(config, length):
    """Ten epochs of the embedded authors' forget10 are twenty steps of 32."""
    config = config.model_copy(update={"method": config.method.model_copy(update=length)})

    def warnings(select: dict[str, Any] | None, every: int) -> list[str]:
        asked = changed(config, select, every_steps=every)
        schedule = schedule_of(asked)
        assert schedule is not None
        return measured_steps(asked, lambda: schedule.steps_per_epoch)

    with pytest.raises(
        UserError, match=r"eval\.select\.step=22: the training has 20 steps; choose one of them"
    ):
        warnings({"rule": "fixed", "step": 22}, 2)
    assert warnings({"rule": "fixed", "step": 20}, 2) == []
    (nothing,) = warnings(None, 21)
    assert nothing.startswith("eval.every_steps=21: the training has 20 steps, so that nothing is measured")
    (alone,) = warnings({"rule": "within", "utility": RETAIN}, 5000)
    assert "so that there is only the last to choose" in alone
    assert warnings(None, 20) == warnings({"rule": "last"}, 100_000) == []
