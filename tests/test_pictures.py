"""Pictures of a sweep: every run, every row and the anchors are in them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from benches.pictures import main
from launch.report.svg import fitted
from tests.launch.report.compare_files import write_run, write_sweep

SVG = "{http://www.w3.org/2000/svg}"


def elements(file, tag):
    return list(ElementTree.fromstring(file.read_text(encoding="utf-8")).iter(SVG + tag))


def test_a_sweep_is_drawn(tmp_path):
    runs = write_sweep(tmp_path / "runs", methods=3, rates=1, betas=1, seeds=3, steps=8)
    assert main([str(runs), "--out", str(tmp_path), "--curves", "tofu/forget/probability"]) == 0
    texts = [each.text for each in elements(tmp_path / "trade-off.svg", "text")]
    assert {"grad_diff", "npo", "simnpo", "target", "retain model"} <= set(texts)
    small = [each for each in elements(tmp_path / "trade-off.svg", "circle") if each.get("r") == "3.5"]
    large = [each for each in elements(tmp_path / "trade-off.svg", "circle") if each.get("r") == "7"]
    assert (len(small), len(large)) == (9, 3)
    assert len([each for each in elements(tmp_path / "curves.svg", "circle") if each.get("r") == "3"]) == 12


def test_without_values_on_the_way_there_are_no_curves_and_without_a_pair_no_picture(tmp_path, capsys):
    runs = tmp_path / "runs"
    results = {"tofu/forget/probability": 0.1, "tofu/retain/probability": 0.9}
    write_run(runs / "one", results=results)
    assert main([str(runs), "--out", str(tmp_path / "out")]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["trade-off.svg"]
    write_run(runs / "two", method="simnpo", results={"tofu/forget/probability": 0.2})
    assert main([str(runs), "--out", str(tmp_path / "none")]) == 2
    assert "metric of utility" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "logarithmic", "ticks"),
    [
        ([0.1, 0.9], False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-3.0, 12.0], False, [0.0, 5.0, 10.0]),
        ([1e-9, 0.5], True, [1.0, 1e-2, 1e-4, 1e-6, 1e-8]),
    ],
)
def test_ticks_are_round_and_within_the_scale(values, logarithmic, ticks):
    scale = fitted(values, 0, 100, logarithmic=logarithmic, unit=True)
    assert [round(tick, 12) for tick in scale.ticks()] == ticks
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in [*values, *ticks])
    assert math.isclose(scale(scale.low), 0, abs_tol=1e-9)
