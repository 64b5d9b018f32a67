"""Charts of the forget metrics after attacks with several curves, and after searched prompts."""

from __future__ import annotations

import pytest

from launch.report.robustness_charts import after_attacks

KEY = "tofu/forget/probability"


def test_each_curve_has_a_chart_and_the_examples_one() -> None:
    run: dict[str, float | None] = {KEY: 0.1}
    for examples, gain in ((10, 0.1), (40, 0.3)):
        for steps in (5, 20):
            run[f"relearning/{examples}_examples/{steps}/{KEY}"] = 0.1 + gain * steps / 20
            run[f"relearning/{examples}_examples/{steps}/unseen/{KEY}"] = 0.1
    run[f"relearning/unrelated/5/{KEY}"] = 0.15
    run[f"soft_prompt/100/{KEY}"] = 0.6
    run["soft_prompt/100/loss"] = 3.0
    models: dict[str, dict[str, float | None]] = {"unlearned": run, "retain model": {KEY: 0.05}}
    charts = {figure.title: figure.data[0] for figure in after_attacks(models)}
    name = "TOFU forget probability"
    for title, x, y in (
        (f"Relearning · {name}, 10 examples", [0, 5, 20], [0.1, 0.125, 0.2]),
        (f"Relearning · {name}, 40 examples, what was not trained on", [0, 5, 20], [0.1, 0.1, 0.1]),
        (f"Relearning · {name}, unrelated", [0, 5], [0.1, 0.15]),
        (f"Relearning · {name} by examples", [0, 10, 40], [0.1, 0.2, 0.4]),
        (f"Soft prompt · {name}", [0, 100], [0.1, 0.6]),
    ):
        assert charts[title]["x"] == x
        assert charts[title]["y"] == pytest.approx(y)
    assert len(charts) == 8
