"""`unlearn meta` on small pools whose figures are known, and the published models of UDS in a comparison."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.report.compare.command import main as compare
from launch.report.compare.discover import find
from launch.report.meta.command import main
from launch.report.meta.pool import read_pool
from launch.report.meta.study import attacks_of, oriented
from tests.eval.eval_fixtures import needs_shared
from tests.launch.report.compare_files import write_run
from tests.paths import SHARED
from unlearn.errors import UserError

ES, TRUTH, UTILITY = "tofu/forget/extraction_strength", "tofu/forget/truth_ratio", "judged/utility"
LABELS = ("relearning/5", "relearning/20", "relearning/20/unseen", "quantisation/int8", "quantisation/int4")


def changed(relearned: float, quantised: float) -> dict[str, float]:
    values = (0.99, relearned, 0.99, 0.99, quantised)
    return {f"{label}/{ES}": value for label, value in zip(LABELS, values, strict=True)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two targets, two retain models; two unlearned models, one of them broken and one not forgotten."""
    folder = tmp_path / "runs"
    for n, (known, unknown) in enumerate([(0.9, 0.1), (0.7, 0.2)]):
        target = write_run(
            folder / f"t{n}", method="none", role="evaluate the target",
            results={ES: known, TRUTH: 0.5, "tofu/model_utility": 0.6},
        )  # fmt: skip
        retain = write_run(
            folder / f"r{n}", method="none", role="evaluate the retain model",
            results={ES: unknown, TRUTH: 0.6 + 0.1 * n} | changed(unknown + 0.1, unknown),
        )  # fmt: skip
        beside = {"target": str(target), "retain": str(retain)}
        own = {ES: 0.2, TRUTH: 0.7, UTILITY: 0.9} | changed(0.5, 0.3)
        write_run(folder / f"npo{n}", seed=n, results=own, baselines=beside)
        write_run(folder / f"ga{n}", method="ga", seed=n, results={**own, UTILITY: 0.1}, baselines=beside)
        write_run(folder / f"idk{n}", method="idk", seed=n, results={**own, ES: 0.8}, baselines=beside)
    write_run(folder / "base", method="none", results={ES: 0.15, TRUTH: 0.9})
    return folder


def table(out: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (out / "meta.csv").open(newline="") as file:
        return {(r["metric"], r["form"], r["figure"]): r for r in csv.DictReader(file)}


def test_a_pool_by_hand(runs, tmp_path, capsys):
    assert main([str(runs), "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out")
    assert float(rows[ES, "", "auc"]["value"]) == 1
    assert float(rows[ES, "", "threshold"]["value"]) == pytest.approx(0.45)
    # Gains .3 and .1 of both models; .2 → .3. The broken models and those not forgotten are left out.
    figures = {
        ("symmetric", "R"): 0.5, ("symmetric", "Q"): 0.8, ("symmetric", "robust"): 2 / (2 + 1 / 0.8),
        ("one_sided", "R"): 1 / 3, ("one_sided", "Q"): 1, ("one_sided", "robust"): 2 / (3 + 1),
    }  # fmt: skip
    for (form, figure), value in figures.items():
        assert float(rows[ES, form, figure]["value"]) == pytest.approx(value)
        assert rows[ES, form, figure]["n"] == "2"
    robust = figures["symmetric", "robust"]
    assert float(rows[ES, "symmetric", "overall"]["value"]) == pytest.approx(2 / (1 + 1 / robust))
    # Less of 1 − truth ratio than .5 is no knowledge: .5 against .4 and .3; no model was attacked on it.
    assert float(rows[TRUTH, "", "auc"]["value"]) == 1
    assert rows[TRUTH, "symmetric", "R"]["value"] == ""
    assert not any(key == "tofu/model_utility" for key, _, _ in rows)
    text = (tmp_path / "out" / "meta.md").read_text()
    assert "R after relearning/20; Q after quantisation/int4" in text
    assert (
        "1 left out, a model that was not unlearned: say which it is with --known or --unknown: base" in text
    )
    assert "## One-sided" in text
    assert "tofu/forget/extraction_s" in capsys.readouterr().out


def test_options_choose_models_and_attacks(runs, tmp_path):
    main([
        str(runs), "--out", str(tmp_path / "out"), "--utility", "0", "--unknown", "ba*",
        "--relearned", "relearning/5", "--quantised", "quantisation/int8",
    ])  # fmt: skip
    rows = table(tmp_path / "out")
    assert rows[ES, "", "auc"]["n"] == "5"
    assert rows[ES, "symmetric", "Q"]["n"] == "4"
    assert float(rows[ES, "symmetric", "Q"]["value"]) == pytest.approx(1 - 0.79 / 1.19)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--known", "nobody*"], "--known nobody*: no run has such a name"),
        (["--relearned", "relearning/7"], "--relearned relearning/7: no unlearned model was scored with it"),
    ],
)
def test_what_is_not_there_is_named(runs, tmp_path, more, part, capsys):
    assert main([str(runs), "--out", str(tmp_path / "out"), *more]) != 0
    assert part in capsys.readouterr().err


def test_text_that_has_nothing_to_do_with_the_forget_set_is_no_attack(runs):
    model = read_pool([str(runs)]).unlearned[0]
    labels = ("relearning/40_examples/20", "relearning/20", "relearning/5", "relearning/unrelated/40")
    results: dict[str, float | None] = {f"{label}/{ES}": 0.1 for label in labels}
    assert attacks_of([replace(model, results=results)]).relearned == "relearning/20"
    assert attacks_of([replace(model, results={f"{labels[-1]}/{ES}": 0.1})]).relearned is None


def test_a_pool_needs_both_kinds(runs):
    with pytest.raises(UserError, match="no evaluation of a target"):
        read_pool([str(runs / "base")])
    with pytest.raises(UserError, match="no such directory or pattern"):
        read_pool([str(runs / "none")])


def test_baselines_are_found_through_a_run(runs):
    pool = read_pool([str(runs / "npo0")])
    assert (list(pool.known), list(pool.unknown)) == (["t0"], ["r0"])
    assert pool.unlearned[0].retain[ES] == 0.1
    assert attacks_of(pool.unlearned).relearned == "relearning/20"


def test_metrics_are_oriented_to_knowledge():
    assert oriented(ES, {ES: 0.2}) == 0.2
    assert oriented(TRUTH, {TRUTH: 0.2}) == pytest.approx(0.8)
    assert oriented("tofu/mia/loss", {"tofu/mia/loss": 0.7}) == 0.7


@needs_shared
@pytest.mark.slow
def test_the_published_models_in_a_comparison(tmp_path):
    file = SHARED / "data" / "uds" / "method_results.json"
    found = find([str(file)])
    assert len(found.runs) == 150
    assert {run.kind for run in found.anchors} == {"target", "retain model"}
    for run in found.runs:
        for name in ("mem", "privacy", "utility_rel", "overall"):
            assert run.results[f"uds/recomputed_{name}"] == pytest.approx(
                run.results[f"uds/{name}"], abs=1e-14
            )
        # Memorisation is our forget efficacy; the paper's is of the same four metrics.
        assert run.results["judged/forget_efficacy"] == pytest.approx(run.results["uds/mem"], rel=1e-9)
    shown = ["uds/overall", "uds/recomputed_overall", "judged/forget_efficacy", "judged/utility"]
    compare([str(file), "--out", str(tmp_path / "out"), "--metrics", *shown, "--sort", "uds/overall"])
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    first = next(line for line in lines if "altpo" in line)
    assert "lr5e5" in first
    assert first.count("0.7726") == 2


def test_a_published_file_that_lacks_a_column_is_named(tmp_path):
    file = tmp_path / "method_results.json"
    file.write_text(json.dumps({"models": [{"model": "full", "epoch": "ep5"}], "full_utility": {"ep5": 0.7}}))
    with pytest.raises(UserError, match="a model has no number for 'one_minus_es'"):
        find([str(file)])
