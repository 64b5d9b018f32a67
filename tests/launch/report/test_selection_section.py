"""What a report says of the chosen step."""

from __future__ import annotations

from typing import Any

import pytest

from launch.report.compare.runs import TASK
from launch.report.selection_section import selection_sentences, selection_table
from launch.report.settings import flat, settings_of
from unlearn.config import EvalConfig

FORGET, RETAIN = "tofu/forget/probability", "tofu/retain/probability"
STORED: dict[str, Any] = {
    "rule": "best_above_floor", "metric": FORGET, "utility": RETAIN, "floor": 0.5, "on": "selection",
    "share": 0.25, "start": "target", "bound": 0.5, "examples": {"forget_eval": 10, "retain_eval": 5},
    "chosen": 2, "met": True,
    "steps": {"2": {FORGET: 0.4, RETAIN: 0.9}, "4": {FORGET: 0.1, RETAIN: None}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, f"step 2 of 4 (rule best_above_floor: the most forgotten by {FORGET} with {RETAIN} at 0.5000"),
        ({}, "The rule saw 15 selection examples (25% of each set), which the results leave out; metrics"),
        ({"met": False, "chosen": 4}, "No step meets the rule, so the model is that of the last step, 4"),
        ({"on": "reported"}, "the 15 examples that are reported, so the results are better"),
        ({"rule": "last", "on": "reported"}, "the reported examples, which decided nothing"),
        ({"rule": "fixed"}, "Metrics during training are of 15 selection examples"),
        (
            {"rule": "within", "tolerance": 0.05, "start": "unlearned model"},
            "0.5000 or better, which is within 0.05 of the unlearned model's",
        ),
        ({"rule": "first_below_retain"}, f"the first that reaches the retain model's {FORGET} of 0.5000"),
    ],
)
def test_sentences(changed, says):
    assert says in " ".join(selection_sentences({**STORED, **changed}))


def test_the_table_of_steps():
    table = selection_table(STORED)
    assert table is not None
    assert table["keys"] == [FORGET, RETAIN]
    assert table["rows"] == [("2", [0.4, 0.9], True), ("4", [0.1, None], False)]


@pytest.mark.parametrize("stored", [{}, {"metrics": {FORGET: 0.4}}])
def test_a_run_without_a_choice_has_no_section(stored):
    assert selection_table(stored) is None


def test_runs_compare_where_the_same_examples_are_reported():
    def settings(**select: Any) -> dict[str, Any]:
        chosen = EvalConfig.model_validate({"select": select})
        return settings_of(flat({"eval": chosen.model_dump(include={"select"})}))

    def task(**select: Any) -> set[str]:
        return {key for key in settings(**select) if TASK.fullmatch(key)}

    assert settings() == {}
    within = {"rule": "within", "utility": RETAIN}
    assert settings(**within) != settings(rule="last")
    assert task(**within) == task(rule="last") == {"eval.select.share"}
    assert task(**within, on="reported") == task() == set()
    assert settings(**within, on="reported")["eval.select.on"] == "reported"


def test_options_of_benchmarks_are_settings_unless_they_have_their_defaults():
    def settings(**options):
        return settings_of(flat({"eval": {"benchmarks": {"tofu": options, "absent.one": {"x": 1}}}}))

    other = {"eval.benchmarks.absent.one.x": 1}
    assert settings(truth_ratio="geometric", min_k=0.4, mia=False, memorization_only=False) == other
    assert settings(memorization_only=True) == other | {"eval.benchmarks.tofu.memorization_only": True}


def test_options_of_variants_and_the_precision_of_the_training_are_settings():
    def settings(dtype, trained, **options):
        config = {"eval": {"variants": {"relearning": options}}, "hardware": {"dtype": dtype}}
        return settings_of(flat(config | {"job": {"trained": trained}}))

    assert settings("fp32", None, lr=1e-5, steps=[5, 10, 20]) == {"hardware.dtype": "fp32"}
    assert settings("fp32", None, lr=5e-5)["eval.variants.relearning.lr"] == 5e-5
    assert settings("fp32", {"dtype": "fp32"}) == settings("fp32", None)
    assert settings("fp32", {"dtype": "bf16"})["trained.dtype"] == "bf16"
