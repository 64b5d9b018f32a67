"""The choice of a training's step: division of the items, rules, and the numbers they compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from eval.selection import (
    Criterion,
    best_above,
    chosen_metrics,
    compares_with,
    criterion,
    divide,
    first_reaching,
    oriented,
)
from unlearn.config import SelectConfig
from unlearn.data.example import Example
from unlearn.errors import UserError
from unlearn.selection import Candidate, Choice, needed

FORGET, RETAIN = "tofu/forget/probability", "tofu/retain/probability"


def examples(count: int, prefix: str = "q", group: str | None = None) -> list[Example]:
    return [Example(f"{prefix}/{n}", "an answer", "a question", group=group) for n in range(count)]


def candidates(*values: tuple[float, ...], keys: tuple[str, ...] = (FORGET, RETAIN)) -> list[Candidate]:
    return [Candidate(n, dict(zip(keys, each, strict=True))) for n, each in enumerate(values, 1)]


def made(
    target: Mapping[str, float] | None = None, retain: Mapping[str, float] | None = None, **keys: object
) -> Criterion:
    return criterion(SelectConfig.model_validate(keys), target or {}, retain or {}, {})


def test_every_example_is_in_one_part_and_no_id_in_both():
    whole = {"forget": examples(40), "retain": examples(7, "r")}
    selected, reported = divide(whole, 0.25)
    for name, rows in whole.items():
        ids = [{e.id for e in part[name]} for part in (selected, reported)]
        assert ids[0].isdisjoint(ids[1])
        assert ids[0] | ids[1] == {e.id for e in rows}
    assert [len(part["forget"]) for part in (selected, reported)] == [10, 30]
    assert [len(part["retain"]) for part in (selected, reported)] == [2, 5]  # 1.75, rounded


def test_the_division_depends_on_the_ids_alone():
    rows = examples(40)
    first, again = divide({"a": rows}, 0.25)[0]["a"], divide({"b": rows[::-1]}, 0.25)[0]["b"]
    assert {e.id for e in first} == {e.id for e in again}
    assert [e.id for e in first] == [e.id for e in rows if e in first]  # in the order of the set
    assert [e.id for e in first] != [e.id for e in rows[: len(first)]]


def test_each_group_is_divided_and_the_pieces_of_a_text_stay_together():
    rows = examples(8, "a", "task1") + examples(8, "b", "task2")
    selected, _ = divide({"forget": rows}, 0.25)
    assert [e.group for e in selected["forget"]] == ["task1"] * 2 + ["task2"] * 2
    pieces = [Example(f"text/{n}#{piece}", "a piece") for n in range(4) for piece in range(3)]
    for part in divide({"forget": pieces}, 0.5):
        texts = [e.id.partition("#")[0] for e in part["forget"]]
        assert len(texts) == 6
        assert all(texts.count(text) == 3 for text in texts)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_neither_part_of_a_set_is_empty(share):
    selected, reported = divide({"forget": examples(3)}, share)
    assert selected["forget"]
    assert reported["forget"]


def test_one_example_cannot_be_divided():
    with pytest.raises(UserError, match=r"set forget has 1 text.*eval.limit.*eval.select.on=reported"):
        divide({"forget": examples(1)}, 0.25)


def test_muses_rule_takes_the_first_step_below_the_retain_model():
    rule = made(rule="first_below_retain", metric=FORGET, retain={FORGET: 0.35})
    steps = candidates((0.6, 1), (0.4, 1), (0.3, 1), (0.2, 1))
    assert rule(steps) == Choice(3, True)
    assert rule(steps[:2]) == Choice(2, False, True)  # none below: the last, marked
    assert rule(candidates((0.6, 1), (0.35, 1))) == Choice(2, True)  # equal is enough
    assert rule(candidates((math.nan, 1), (0.3, 1))) == Choice(2, True)


def test_the_most_forgetting_above_the_floor():
    values = [(0.95, 0.2), (0.9, 0.6), (0.7, 0.9)]  # utility, forgetting
    utility, forgetting = [u for u, _ in values], [f for _, f in values]
    assert best_above(forgetting, utility, 0.85) == 1
    assert best_above(forgetting, utility, 0.99) is None
    assert best_above([0.5, 0.5], [1.0, 1.0], 0.85) == 0  # of equal ones the first
    assert best_above([math.nan, 0.1, 0.9], [1.0, 1.0, math.nan], 0.85) == 1


def test_the_floor_in_a_run_where_lower_is_forgetting():
    steps = candidates((0.8, 0.95), (0.4, 0.9), (0.1, 0.7))
    asked: dict[str, Any] = {"rule": "best_above_floor", "metric": FORGET, "utility": RETAIN}
    assert made(**asked, floor=0.85)(steps) == Choice(2, True)
    assert made(**asked, floor=0.99)(steps) == Choice(3, False, True)
    of_target = made(**asked, floor="0.9 target", target={RETAIN: 0.96})
    assert of_target.bound == pytest.approx(0.864)
    assert of_target(steps) == Choice(2, True)
    assert made(**asked, floor="0.7 retain", retain={RETAIN: 1.0})(steps) == Choice(3, True)


def test_undos_rule_takes_the_first_step_close_to_the_target():
    rule = made(rule="within", utility=RETAIN, target={RETAIN: 0.8})
    assert rule.bound == pytest.approx(0.76)
    assert rule(candidates((0, 0.5), (0, 0.77), (0, 0.8))) == Choice(2, True)
    assert rule(candidates((0, 0.5), (0, 0.75))) == Choice(2, False, True)


def test_last_and_fixed():
    steps = candidates((0.6, 1), (0.4, 1), (0.3, 1))
    assert made(rule="last")(steps) == Choice(3, True, True)
    assert made(rule="fixed", step=2)(steps) == Choice(2, True)
    assert made(rule="fixed", step=9)(steps) == Choice(3, False, True)


def test_a_value_that_could_not_be_measured_is_named():
    with pytest.raises(UserError, match=f"{FORGET} of the retain model could not be measured"):
        made(rule="first_below_retain", metric=FORGET, retain={FORGET: math.nan})
    with pytest.raises(UserError, match=f"{RETAIN} of the target could not be measured"):
        made(rule="within", utility=RETAIN)


def test_values_are_oriented_by_what_the_benchmark_declares():
    from eval.benchmark import Better

    assert oriented(0.3, Better.FORGOTTEN_IF_HIGHER) == 0.3
    assert oriented(0.3, Better.LOWER) == -0.3
    assert oriented(-20.0, Better.ZERO) == -20.0
    assert oriented(0.6, Better.LIKE_RETAIN, 0.5) == pytest.approx(-0.1)
    assert first_reaching([1.0, 2.0], 3.0) is None


def test_what_a_rule_compares_with():
    def of(**keys: object) -> set[str]:
        return compares_with(SelectConfig.model_validate(keys))

    assert of(rule="last") == set()
    assert of(rule="within") == {"target"}
    assert of(rule="first_below_retain") == {"retain model"}
    floor = {"rule": "best_above_floor", "utility": RETAIN}
    assert of(**floor, metric=FORGET, floor=0.5) == set()
    assert of(**floor, metric=FORGET, floor="0.9 target") == {"target"}
    assert of(**floor, metric="muse/mia/min_k_auc", floor=0.5) == {"retain model"}


@pytest.mark.parametrize("floor", ["0.9 of target", "high", ">= 0.9"])
def test_a_floor_is_a_number_or_a_multiple(floor):
    with pytest.raises(ValueError, match=r"0\.9 target"):
        SelectConfig.model_validate({"rule": "best_above_floor", "floor": floor})


def test_the_models_that_stay():
    rule = made(rule="best_above_floor", metric=FORGET, utility=RETAIN, floor=0.5)
    steps = candidates((0.6, 1), (0.7, 1), (0.3, 1), (0.4, 1))
    assert needed(steps, rule, []) == {3}
    assert needed(steps, rule, [4]) == {3}
    assert needed(steps, rule, [3]) == {3, 1}  # step 3 is measured again, should the training continue there
    assert needed(candidates((0.6, 0.1)), rule, []) == set()  # the last step's model is yet to come
    assert needed(steps, made(rule="last"), []) == set()


def test_what_results_say_of_the_choice():
    select = SelectConfig(rule="best_above_floor", metric=FORGET, utility=RETAIN, floor=0.5)
    stored = {
        "chosen": 2, "met": True,
        "steps": {"2": {FORGET: 0.4, RETAIN: 0.9}, "4": {FORGET: 0.1, RETAIN: None}},
    }  # fmt: skip
    metrics = chosen_metrics(select, stored)
    assert math.isnan(metrics.pop("select/last_utility"))
    assert metrics == {
        "select/step": 2, "select/met": 1, "select/value": 0.4, "select/last_value": 0.1,
        "select/utility": 0.9,
    }  # fmt: skip
