"""A metric that no benchmark declares is shown everywhere, without an arrow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from eval.metric_catalog import shown
from launch.report.compare.command import make
from launch.report.compare.discover import find
from launch.report.compare.export import in_csv, in_markdown
from launch.report.compare.page import page_data
from launch.report.page import write_report
from launch.report.results_table import result_table
from launch.sweep.summary_table import summary
from launch.sweep.sweep_run import SweepRun
from tests.launch.report.compare_files import write_run

KEYS = ("mine/accuracy", "mine/forget/odd", "mine/retain/odd")
RESULTS = {"tofu/model_utility": 0.5, **dict.fromkeys(KEYS, 0.25)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for method in ("npo", "rmu"):
        rows = [{"step": step, "loss": 1.0, **RESULTS} for step in (1, 2)]
        write_run(tmp_path / method, method=method, results=RESULTS, rows=rows)
    return tmp_path


def test_the_terminal_has_a_row():
    console = Console(width=100, record=True)
    console.print(result_table({"unlearned": RESULTS}, shown(RESULTS)))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert [[key, "0.2500"] in lines for key in KEYS] == [True] * 3


def test_the_report_has_a_row_and_a_chart(runs):
    page = write_report(runs / "npo").read_text(encoding="utf-8")
    for key in KEYS:
        row = re.search(rf"<code>{key}</code></td>(.*?)</tr>", page, re.S)
        assert row is not None
        assert "0.2500" in row[1]
        assert '<td class="soft"></td>' in row[1]
    (figures,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    charts = {figure["title"]: figure["hint"] for figure in json.loads(figures).values()}
    assert charts["MINE · accuracy"] == charts["MINE · odd"] == ""


def test_the_comparison_has_a_column_a_chart_and_curves(runs):
    comparison, every = make(find([str(runs)]))
    assert comparison.metrics == ["tofu/model_utility", *KEYS]
    assert "| TOFU model utility ↑ | MINE accuracy | MINE forget odd | MINE retain odd |" in in_markdown(
        comparison
    )
    assert set(KEYS) <= set(in_csv(comparison, every).splitlines()[0].split(","))
    data, _ = page_data(comparison, every)
    assert [metric["arrow"] for metric in data["metrics"]] == ["↑", "", "", ""]
    assert [(chart["title"], chart["names"]) for chart in data["sets"]] == [("odd", ["forget", "retain"])]
    assert {curve["key"] for curve in data["curves"]["keys"]} == {"loss", *RESULTS}


def test_the_table_of_a_sweep_has_a_column(runs):
    table = summary([SweepRun((f"method={name}",), runs / name) for name in ("npo", "rmu")])
    assert table.heads == ["", "tofu/model_utility ↑", *KEYS]
