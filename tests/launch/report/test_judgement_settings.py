"""How a run is judged is read from its configuration, and is a setting of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.judgement.aggregate import MEMORISATION, PRIVACY, UTILITY
from eval.metrics.mia import closeness
from launch.compose import checked, compose_run
from launch.report.compare.command import make
from launch.report.compare.discover import find
from launch.report.page import write_report
from launch.report.settings import judgement_of
from launch.run.plan import Planned, make_plan
from tests.launch.report.compare_files import write_run
from unlearn.config import JudgementConfig

OWN = dict(
    zip(
        (*MEMORISATION, *PRIVACY, *UTILITY), (0.5, 0.6, 0.2, 0.2, 0.75, 0.5, 0.25, 0.5, 0.3, 0.9), strict=True
    )
)
START = {**dict.fromkeys(PRIVACY, 0.9), "tofu/model_utility": 0.6, "tofu/forget/fluency": 0.8}
CLEAN = dict.fromkeys(PRIVACY, 0.5)


def key(*overrides: str) -> str:
    command = ("tracker=disabled", "eval=tofu", *overrides)
    return make_plan(checked(compose_run(command))).main.evaluation_key


def test_the_default_judgement_leaves_finished_evaluations_complete():
    default = key()
    assert key("++eval.judgement.closeness=exponential") == default
    others = {key("++eval.judgement.closeness=relative"), key("++eval.judgement.aggregate=true")}
    assert default not in others
    assert len(others) == 2


def test_relearning_at_another_rate_is_another_evaluation_and_with_adapters_none():
    """Of the retain model as well, with which what is relearned is compared."""

    def of_retain(*overrides: str) -> str:
        command = ("tracker=disabled", "method=npo", *overrides)
        runs = make_plan(checked(compose_run(command))).runs
        return next(run.evaluation_key for run in runs if run.role == "evaluate the retain model")

    robust = "eval=[tofu,robust]"
    for changed in ("++model.lora.r=4", "++model.lr_scale=7"):
        assert of_retain("eval=tofu", changed) == of_retain("eval=tofu")
        assert (of_retain(robust, changed) == of_retain(robust)) == ("lora" in changed)


def test_the_root_may_be_spelled_or_mounted_otherwise(tmp_path, monkeypatch):
    """The retain model is the one of that name there."""
    monkeypatch.chdir(tmp_path)

    def made(root: str) -> Planned:
        return make_plan(checked(compose_run(("tracker=disabled", "eval=tofu", f"++root={root}")))).main

    typed, whole = made("runs"), made(str(tmp_path / "runs"))
    assert typed.evaluation_key == whole.evaluation_key
    before = whole._evaluation_key(whole.job.baselines.retain)
    assert before != whole.evaluation_key
    assert whole.is_measured(before)
    assert not whole.is_measured("another")


def test_older_configurations_are_judged_by_default():
    assert judgement_of({}) == JudgementConfig()
    chosen = {"eval.judgement.closeness": "relative", "eval.judgement.aggregate": True, "model.name": "x"}
    assert judgement_of(chosen) == JudgementConfig(closeness="relative", aggregate=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    target = write_run(tmp_path / "t", method="none", role="evaluate the target", results=START)
    retain = write_run(tmp_path / "r", method="none", role="evaluate the retain model", results=CLEAN)
    own = write_run(
        tmp_path / "own", results=OWN, baselines={"target": str(target), "retain": str(retain)}
    )  # fmt: skip
    for folder in (target, retain, own):
        file = folder / "config.yaml"
        chosen = '{"eval": {"judgement": {"closeness": "relative", "aggregate": true}}, '
        file.write_text(file.read_text().replace("{", chosen, 1))
    return own


def test_the_page_shows_the_aggregate_and_its_parts(run, tmp_path):
    page = write_report(run, target_dir=tmp_path / "t", retain_dir=tmp_path / "r")
    text = page.read_text()
    assert "harmonic mean of memorisation" in text
    assert f"{3 / 4.75:.4f}" in text
    # 4/7, 2/3 and 2/3, and 1 − .4/.5 of the target's attacks
    for value in (4 / 7, 2 / 3, 0.2):
        assert f"{value:.4f}" in text


def test_a_comparison_judges_targets_as_their_runs(run, tmp_path):
    results = {f"judged/{name}": 0.5 for name in ("privacy", "aggregate")}
    (tmp_path / "t" / "results.json").write_text(json.dumps({**START, **results}))
    (run / "results.json").write_text(json.dumps({**OWN, **results}))
    comparison, _ = make(find([str(tmp_path)]), ["judged/privacy"])
    (target,) = [row for row in comparison.anchors if row.kind == "target"]
    assert target.mean("judged/privacy").mean == pytest.approx(closeness(0.9, 0.5, "relative"))
