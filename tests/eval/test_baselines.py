"""A published log in place of a retain model, with benchmarks that read one and with others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval import configuration
from eval import evaluate as evaluation
from eval.benchmark import Benchmark, Result
from eval.collection.records import Records
from eval.configuration import baseline_problems, baseline_warnings
from unlearn.config import DatasetConfig, EvalConfig, MethodConfig, ModelConfig, RunConfig, Section
from unlearn.errors import UserError


def own_benchmark(compared: list[Any], **more: Any) -> Any:
    """Return a benchmark without questions that appends the baseline it gets to `compared`."""

    def score(read: Records, retain: Any, sets: Any, options: Any) -> Result:
        compared.append(retain)
        return Result({}, [])

    return SimpleNamespace(
        Options=Section, SETS={}, METRICS={}, requests=lambda sets, options: [], score=score, **more
    )


def read_baseline(path: Path) -> Any:
    content = json.loads(path.read_text())
    if "score" not in content:
        raise UserError(f"{path}: expected a score")
    return content["score"]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    own: dict[str, Benchmark] = {
        "reads": own_benchmark(found, read_baseline=read_baseline),
        "ignores": own_benchmark(found),
    }
    for module in (evaluation, configuration):
        monkeypatch.setattr(module, "find", own.__getitem__)
    monkeypatch.setattr(configuration, "BENCHMARKS", SimpleNamespace(names=lambda: list(own)))
    return found


def config(log: Path, *benchmarks: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name="m", retain_log=str(log)),
        dataset=DatasetConfig(name="d", source="authors"),
        method=MethodConfig(name="none"),
        eval=EvalConfig(benchmarks={name: {} for name in benchmarks}),
    )


def test_only_benchmarks_that_read_a_log_get_it(tmp_path: Path, compared: list[Any]) -> None:
    log = tmp_path / "log.json"
    log.write_text('{"score": 0.5}')
    for name in ("reads", "ignores"):
        evaluation.score_directory(name, {}, tmp_path, retain_log=log)
    assert compared == [0.5, None]
    both = config(log, "ignores", "reads")
    assert baseline_problems(both) == baseline_warnings(both) == []


def test_a_log_is_checked_by_those_that_read_it(tmp_path: Path, compared: list[Any]) -> None:
    log = tmp_path / "log.json"
    log.write_text("{}")
    assert baseline_problems(config(log, "ignores", "reads")) == [
        f"model.retain_log: {log}: expected a score"
    ]
    alone = config(log, "ignores")
    assert baseline_problems(alone) == []
    (warning,) = baseline_warnings(alone)
    assert (
        warning == f"model.retain_log={log}: no benchmark of this run reads a published log (these do: reads)"
    )
    (problem,) = baseline_problems(config(tmp_path / "gone.json", "ignores"))
    assert f"model.retain_log={tmp_path / 'gone.json'}: " in problem
