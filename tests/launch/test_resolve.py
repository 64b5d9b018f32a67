"""A command does once what it needs once: compose, check, bind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch.compose
import launch.resolve
import unlearn.terms
from tests.launch.commands import done

TINY = (
    "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2", "model.finetune.steps=2",
    "method.steps=2", "method.batch=2", "hardware.threads=1", "eval.limit=2", "eval.max_new_tokens=2",
    "tracker=disabled",
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was called; `bind` by the method's name."""
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
    monkeypatch.setattr(unlearn.terms, "KNOWN_TERMS", {})
    return counted


METHODS = ("grad_diff", "finetune", "none", "reinforce")  # the last is checked as `method.reinforced`
ONCE = {"compose": 1, "check": 1, "plan": 1, "inspect": 1} | {f"bind {name}": 1 for name in METHODS}


def test_a_dry_run(calls: Counter[str], tmp_path: Path) -> None:
    done(tmp_path, *TINY, "method=grad_diff", "dry_run=true")
    assert calls == ONCE


@pytest.mark.slow
def test_a_run_with_all_that_it_needs(calls: Counter[str], tmp_path: Path) -> None:
    shown = done(tmp_path, *TINY, "method=grad_diff")
    assert "5/5 run" in shown.out
    assert calls == ONCE
