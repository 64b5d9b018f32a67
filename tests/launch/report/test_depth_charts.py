"""The charts of the depth of unlearning, and their place in the report."""

from __future__ import annotations

import json
from pathlib import Path

from eval.metric_catalog import declarations, in_order, info, shown
from launch.report.depth_charts import depth_charts
from launch.report.page import write_report

ROWS = [
    {
        "block": block, "retain_drop": 2.0 * block, "drop": 1.0, "encoding": 1.0, "erased": None,
        "target_probability": 0.5, "retain_probability": 0.1, "probability": None,
    }
    for block in (1, 2)
]  # fmt: skip
KEYS = {"depth/uds": 0.25, "depth/logit_lens": 0.5, "depth/uds/missing": 3.0, "tofu/model_utility": 0.5}


def test_two_charts_over_the_blocks(tmp_path: Path) -> None:
    assert depth_charts(tmp_path, "unlearned") == []
    folder = tmp_path / "eval" / "depth"
    folder.mkdir(parents=True)
    (folder / "layers.json").write_text(json.dumps({"blocks": ROWS}))
    drops, decoded = depth_charts(tmp_path, "unlearned")
    assert [(each["name"], each["x"], each["y"]) for each in drops.data] == [
        ("retain model", [1, 2], [2.0, 4.0]), ("unlearned", [1, 2], [1.0, 1.0]),
    ]  # fmt: skip
    assert [each["y"] for each in decoded.data] == [[0.5, 0.5], [0.1, 0.1], []]
    assert decoded.layout["xaxis"]["title"]["text"] == "block"
    (tmp_path / "results.json").write_text(json.dumps(KEYS))
    page = write_report(tmp_path).read_text()
    assert "How deep it is forgotten" in page
    assert "decoded from each block by logit lens" in page


def test_a_variant_declares_its_own_metrics() -> None:
    one = info("depth/uds")
    assert (one.variant, one.benchmark, one.metric) == ("", "depth", "uds")
    assert one.is_metric
    assert one.direction.startswith("↑")
    assert info("depth/uds/missing").is_detail
    assert info("depth/uds/missing").variant == ""
    assert any("depth/logit_lens" in metrics for metrics in declarations())
    assert in_order(KEYS)[0] == "tofu/model_utility"
    assert {"depth/uds", "depth/logit_lens"} <= set(shown(KEYS))
