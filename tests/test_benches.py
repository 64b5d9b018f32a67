"""What the method bench measures, and its arithmetic."""

from __future__ import annotations

import time

import pytest

from benches.cases import settings
from benches.methods import compare
from benches.presets import BATCH, VARIANTS, Row, as_measured, rows
from tests.paths import ROOT

ROWS = rows()


def row(name: str) -> Row:
    (found,) = (each for each in ROWS if name in each.names)
    return found


def test_every_preset_that_trains_is_measured_once() -> None:
    names = [name for each in ROWS for name in each.names]
    presets = {file.stem for file in (ROOT / "configs" / "method").glob("*.yaml")}
    assert sorted(names) == sorted(set(names))
    # Nothing is trained; NGDiff is compared with separate backwards.
    assert presets - set(names) == {"none", "whp", "dsg", "ngdiff"}
    assert set(names) - presets == set(VARIANTS)


def test_rows_are_shared_by_presets_that_differ_in_numbers_alone() -> None:
    assert set(row("npo").names) == {"npo", "npo-altpo", "npo-wmdp"}
    assert row("satimp") == row("satimp-muse")
    assert row("rmu") != row("rmu-adaptive")
    assert row("dpo") != row("altpo")  # refusals are shorter than other answers
    assert row("kl_min") != row("kl_min, mask=answer")


@pytest.mark.parametrize(
    ("name", "aim"),
    [
        ("grad_diff", 1.1), ("satimp", 1.1), ("nlul without a teacher", 1.1), ("dpo", 1.1), ("undial", 1.6),
        ("kl_min, mask=answer", 1.6), ("kl_min", None), ("nlul", None), ("kto", None),
    ],
)  # fmt: skip
def test_aims(name: str, aim: float | None) -> None:
    assert row(name).aim == aim


def test_a_preset_is_measured_with_the_benchs_batch_and_without_generating() -> None:
    method = as_measured(settings("method", "altpo"))
    assert (method.batch, method.steps, method.schedule) == (BATCH, None, "constant")
    assert (method.alternatives.source, method.alternatives.count) == ("mismatch", 5)


def test_ratios_are_of_cpu_time_and_of_tokens() -> None:
    seen: list[tuple[str, int]] = []

    def step(name: str, work: int, tokens: float) -> float:
        seen.append((name, work))
        until = time.process_time() + 0.01 * work
        while time.process_time() < until:
            pass
        return tokens

    found = compare(
        lambda n: step("base", 1, 10.0),
        {"a": lambda n: step("a", 3, 15.0), "b": lambda n: step("b", 1, 5.0)},
        2,
    )
    assert [name for name, _ in seen] == ["base", "a", "b", "base", "a", "b", "b", "a", "base"]
    a, b = found["a"], found["b"]
    # Three times the work for 1.5 times the tokens; as much work for half of them.
    assert (a.tokens, b.tokens) == (1.5, 0.5)
    assert a.step == pytest.approx(3.0, rel=0.25)
    assert a.per_token == pytest.approx(2.0, rel=0.25)
    assert b.per_token == pytest.approx(2.0, rel=0.25)
    assert a.low <= a.per_token <= a.high
