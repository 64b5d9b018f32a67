"""A command does once what it needs once: compose, check, bind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch.compose
import launch.resolve
import unlearn.plugins
import unlearn.terms
from tests.launch.commands import done

TINY = (
    "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2", "model.finetune.steps=2",
    "method.steps=2", "method.batch=2", "hardware.threads=1", "eval.limit=2", "eval.max_new_tokens=2",
    "tracker=disabled",
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was called: `bind` by the method's name, `parse_uncached` by owner, key and values."""
    counted: Counter[str] = Counter()

    def count(module: Any, function: str, name: Callable[..., str]) -> None:
        original = getattr(module, function)

        def call(*args: Any, **keywords: Any) -> Any:
            counted[name(*args)] += 1
            return original(*args, **keywords)

        monkeypatch.setattr(module, function, call)

    count(launch.compose, "compose", lambda *_: "compose")
    count(launch.resolve, "check", lambda *_: "check")
    count(launch.resolve, "make_plan", lambda *_: "plan")
    count(launch.resolve, "inspect", lambda *_: "inspect")
    count(unlearn.terms, "make_terms", lambda method: f"bind {method.name}")
    count(unlearn.plugins, "parse_uncached", lambda _, given, key, owner, *near: f"{owner}, {key} {given}")
    monkeypatch.setattr(unlearn.terms, "KNOWN_TERMS", {})
    monkeypatch.setattr(unlearn.plugins, "KNOWN_OPTIONS", {})
    return counted


METHODS = ("grad_diff", "finetune", "none", "reinforce")  # the last is checked as `method.reinforced`
OPTIONS = ("source authors, dataset.options {", "benchmark tofu, eval.benchmarks.tofu {")
ONCE = {"compose": 1, "check": 1, "plan": 1, "inspect": 1} | {f"bind {name}": 1 for name in METHODS}


def assert_once(calls: Counter[str]) -> None:
    parsed = {name: count for name, count in calls.items() if "{" in name}
    assert {name: calls[name] for name in calls.keys() - parsed} == ONCE
    assert all(any(name.startswith(options) for name in parsed) for options in OPTIONS), parsed
    assert set(parsed.values()) == {1}, parsed


def test_a_dry_run(calls: Counter[str], tmp_path: Path) -> None:
    done(tmp_path, *TINY, "method=grad_diff", "dry_run=true")
    assert_once(calls)


@pytest.mark.slow
def test_a_run_with_all_that_it_needs(calls: Counter[str], tmp_path: Path) -> None:
    shown = done(tmp_path, *TINY, "method=grad_diff")
    assert "5/5 run" in shown.out
    said = re.findall(r"^(\d)/5 runs done(?:, (about|at least) \d+ s left)?$", shown.out, re.MULTILINE)
    assert said == [("1", "at least"), ("2", "at least"), ("3", "about"), ("4", "about")]
    assert_once(calls)
