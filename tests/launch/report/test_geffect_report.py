"""The G-effect in a run's report and in the comparison of runs, from made-up run directories."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.report.axes import signed
from launch.report.charts import training_curves
from launch.report.documentation import SITE
from launch.report.geffect.command import main, write_study
from launch.report.geffect.example_charts import MAX_PAIRS, check_charts, grid_charts
from launch.report.geffect.files import (
    MAX_ROWS,
    effect_rows,
    layers_of_groups,
    probed_steps,
    tables,
    thinned,
    tracked,
)
from launch.report.geffect.sections import MAX_EXAMPLES, checks, hurt, strongest_examples
from launch.report.geffect.study import compared, summary
from launch.report.geffect.study_charts import study_charts, styles
from launch.report.geffect.study_runs import find_runs, read_run
from launch.report.geffect.token_charts import (
    MAX_POINTS,
    distribution,
    pairs,
    rank_correlation,
    sampled,
    token_charts,
)
from launch.report.geffect.training_charts import conflict, layer_maps, over_training
from launch.report.packed import write_packed
from launch.report.page import write_report
from launch.report.settings import shortest
from launch.report.statistics import Interval, interval
from launch.tracking.tracker import open_tracker
from launch.tracking.trackers import TrackedRun
from tests.launch.report.browser import drawn
from tests.launch.report.geffect_files import GROUPS, layers, numbers, tokens, write_run
from tests.paths import ROOT
from unlearn.config import TrackerConfig
from unlearn.run_dir import RunDir

NASTY = """</script><script>document.title='owned'</script><img src=x onerror="boom()"> & 'quoted'"""
SECTIONS = ("geffect", "geffect_layers", "geffect_points", "geffect_grid", "geffect_check")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("one") / "run", question=NASTY)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two β of NPO with three seeds each, RMU by layer and coefficient, and a run without a probe."""
    root = tmp_path_factory.mktemp("study")
    for beta in (0.1, 0.5):
        for seed in range(3):
            write_run(root / f"npo-{beta}-{seed}", beta=beta, seed=seed)
    for layer in (0.33, 0.66):
        for coefficient in (2.0, 6.5):
            settings = {"layer": layer, "coefficient": coefficient}
            path = root / f"rmu-{layer}-{coefficient}"
            write_run(path, method="rmu", beta=None, settings=settings, weighted=False, scale=layer)
    (root / "plain").mkdir()
    (root / "plain/history.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return root


def figures_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, flags=re.S)
    return json.loads(text)


def without_plotly(page: str) -> str:
    return re.sub(r'(<script type="application/gzip"[^>]*>)[^<]*', r"\1", page)


# -- scales and samples ------------------------------------------------------------------------------------


def test_an_axis_is_logarithmic_on_both_sides_where_values_span_much():
    assert signed([1, -2, 100, None, math.nan, 0]).unit is None
    assert signed([]).place(3.0) == 3.0
    wide = signed([1.0, -1000.0])
    assert wide.unit == 1.0
    # ln(10 + √101) / ln 10 = 2.99822 / 2.30259
    assert wide.place(10.0) == pytest.approx(1.302117, abs=1e-5)
    assert wide.place(-10.0) == pytest.approx(-1.302117, abs=1e-5)
    assert (wide.place(0.0), wide.place(math.inf), wide.place(None)) == (0.0, None, None)
    powers = [f"10<sup>{k}</sup>" for k in range(4)]
    assert wide.ticks["ticktext"] == [*(f"−{p}" for p in reversed(powers)), "0", *powers]
    assert wide.ticks["tickvals"] == sorted(wide.ticks["tickvals"])
    assert len(signed([1e-9, 1e9]).ticks["tickvals"]) <= 9


def test_thinning_keeps_both_ends():
    assert thinned(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert thinned([1, 2, 3], 1) == [3]
    assert thinned([1, 2], None) == [1, 2]


def test_a_sample_of_tokens_is_the_same_at_every_step():
    rows = [{"set": "forget", "id": f"e{i}", "position": j, "v": 0} for i in range(50) for j in range(20)]
    first = sampled(rows, 100)
    assert len(first) == 100
    again = sampled([row | {"v": 1} for row in rows], 100)
    assert [(r["id"], r["position"]) for r in first] == [(r["id"], r["position"]) for r in again]
    assert sampled(rows, 5000) == rows


# -- charts over the steps ---------------------------------------------------------------------------------


def test_effects_over_the_steps_mark_those_that_failed_the_check():
    rows = [numbers(step) for step in (0, 10, 20, 30, 40)]
    charts = {figure.title: figure for figure in over_training(rows)}
    both = charts["Unlearning and retaining effect"]
    assert [trace["name"] for trace in both.data] == ["unlearning effect", "retaining effect"]
    assert both.data[0]["x"] == [0, 10, 20, 30, 40]
    assert both.data[0]["y"] == pytest.approx([-math.exp(step / 8) for step in (0, 10, 20, 30, 40)])
    assert both.data[0]["marker"]["symbol"] == ["circle"] * 3 + ["circle-open"] * 2
    assert "hollow" in both.hint
    by_group = charts["Unlearning effect by group of layers"]
    assert [trace["name"] for trace in by_group.data] == list(GROUPS)
    terms = charts["Retaining effect of each term"]
    assert [trace["name"] for trace in terms.data] == ["forget", "retain"]
    assert len(charts["Cosines"].data) == 3
    # Steps 30 and 40 failed: from halfway between 20 and 30; the last step has nothing after it.
    shades = [(shape["x0"], shape["x1"]) for shape in charts["Distance from the target"].layout["shapes"]]
    assert shades == [(25, 35), (35, 40)]
    assert "shaded" in charts["Distance from the target"].hint


def test_nothing_is_marked_where_there_was_no_check_and_nothing_drawn_that_was_not_logged():
    rows = [{"step": step, "geffect/unlearn": -1.0} for step in (0, 5)]
    (only,) = over_training(rows)
    assert only.title == "Unlearning and retaining effect"
    assert "hollow" not in only.hint
    assert "symbol" not in only.data[0]["marker"]
    assert over_training([]) == []


def test_training_curves_leave_the_effects_to_their_own_charts():
    rows = [{"step": 1, "loss": 1.0} | numbers(1)]
    assert [figure.title for figure in training_curves(rows, set())] == ["loss"]


# -- layers ------------------------------------------------------------------------------------------------


def test_maps_add_up_the_tensors_of_a_layer():
    maps = {f.title: f for f in layer_maps({s: pa.Table.from_pylist(layers(s)) for s in (0, 40)})}
    drawn = maps["Unlearning effect by layer"].data[0]
    assert drawn["x"] == ["0", "40"]
    assert drawn["y"] == ["embedding", *(f"layer {i}" for i in range(6)), "final norm", "head"]
    # Five tensors of layer 1 at step 40, each −41/2; one embedding of −41.
    assert drawn["z"][2][1] == pytest.approx(-102.5)
    assert drawn["z"][0][1] == pytest.approx(-41.0)
    assert (drawn["zmin"], drawn["zmax"]) == (-205.0, 205.0)  # layer 0
    cosines = maps["Conflict map"].data[0]
    assert cosines["z"][2][0] == pytest.approx(0.4)
    assert (cosines["zmin"], cosines["zmax"]) == (-1.0, 1.0)
    kinds = maps["Unlearning effect by layer and kind"]
    assert kinds.data[0]["x"] == ["attention", "mlp", "norm", "embedding", "head"]
    assert kinds.data[1]["z"][1] == pytest.approx([-82.0, -82.0, -41.0, None, None], nan_ok=True)
    assert [trace["visible"] for trace in kinds.data] == [False, True]
    (slider,) = kinds.layout["sliders"]
    assert [stop["label"] for stop in slider["steps"]] == ["0", "40"]
    assert slider["steps"][0]["args"][0] == {"visible": [True, False]}


def test_a_conflict_of_several_tensors_needs_their_lengths():
    rows = [{"conflict": 1.0, "forget_norm": 3.0, "retain_norm": 4.0},
            {"conflict": 0.0, "forget_norm": 4.0, "retain_norm": 3.0}]  # fmt: skip
    assert conflict(rows) == pytest.approx(12 / (5 * 5))
    assert conflict([{"conflict": row["conflict"]} for row in rows]) == 0.5
    assert conflict([{"conflict": None}]) is None


def test_a_run_without_a_retain_set_has_maps_of_what_there_is():
    rows = [row | {"retain": None, "conflict": None} for row in layers(0)]
    titles = [figure.title for figure in layer_maps({0: pa.Table.from_pylist(rows)})]
    assert titles == ["Unlearning effect by layer", "Unlearning effect by layer and kind"]


# -- tokens ------------------------------------------------------------------------------------------------


def table_of(weights: list[float | None], p: float = 0.5) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"set": "forget", "id": "a", "position": i, "text": "<b>w", "logp": math.log(p), "weight": weight,
             "objective": -1.0, "unlearn": 2.0, "retain": 3.0}
            for i, weight in enumerate(weights)
        ]
    )  # fmt: skip


def test_weights_against_effects_and_likelihood():
    charts = token_charts({0: table_of([0.1, 0.9]), 10: table_of([0.2])})
    assert [figure.title for figure in charts] == [
        "Forget tokens: effect on the forget risk",
        "Forget tokens: effect on the retain risk",
        "Weight against likelihood",
        "Weights over the steps",
    ]
    assert charts[0].data[0]["x"] == [0.1, 0.9]
    assert charts[0].data[0]["y"] == [2.0, 2.0]
    assert charts[0].data[0]["customdata"][0][0] == "&lt;b&gt;w"
    assert [trace["visible"] for trace in charts[0].data] == [False, True]
    assert charts[2].data[1]["x"] == [0.5]
    assert charts[2].data[1]["y"] == [0.2]


def test_an_objective_without_weights_shows_effects_by_likelihood():
    charts = token_charts({0: table_of([None, None], p=0.25)})
    assert [figure.title for figure in charts][-1] == "Forget tokens: effect of the objective"
    assert charts[0].data[0]["x"] == [0.25, 0.25]
    assert "sliders" not in charts[0].layout


def test_the_distribution_of_weights_by_step():
    shares, mean = distribution({0: table_of([0.0, 0.0, 0.0, 1.0])}, "weights").data
    column = [row[0] for row in shares["z"]]
    # Three of four in the lowest bin, one in the highest; drawn is the square root.
    assert (column[0], column[-1]) == (pytest.approx(0.75**0.5, abs=1e-4), 0.5)
    assert sum(column[1:-1]) == 0
    assert shares["customdata"][0] == ["75.0%"]
    assert mean["y"] == [0.25]
    # Equal weights have a bin of their own, too.
    assert sum(row[0] for row in distribution({0: table_of([0.0, 0.0])}, "w").data[0]["z"]) == 1.0


def test_charts_of_points_are_bounded():
    many = pa.Table.from_pylist(
        [row | {"id": f"{row['id']}-{i}"} for i in range(60) for row in table_of([0.1] * 50).to_pylist()]
    )
    for figure in token_charts(dict.fromkeys(range(40), many)):
        assert sum(len(trace["x"]) for trace in figure.data if trace["type"] == "scatter") <= MAX_POINTS
        assert len(figure.data) <= 12


# -- examples, grid and check ------------------------------------------------------------------------------


def test_strongest_examples_with_their_tokens(run):
    every = {kind: tables(run, kind) for kind in ("examples", "tokens", "grid")}
    sets = strongest_examples(every["examples"], every["tokens"])
    assert list(sets) == ["forget", "retain"]
    assert sets["forget"]["step"] == 40
    assert sets["forget"]["groups"] == list(GROUPS)
    # effects of the forget examples are −2 (i + 1)
    assert [row["objective"] for row in sets["forget"]["rows"]] == [-12.0, -10.0, -8.0, -6.0, -4.0, -2.0]
    spans = sets["forget"]["rows"][0]["spans"]
    assert "".join(text for text, _, _ in spans) == "The author was born in Santiago, Chile.</s>"
    assert max(abs(share) for _, share, _ in spans) == 1.0
    # effects of pairs are −(i + 1)(j − 1): on retain 5 −4 (1 + … + 6)/6 on average, −24 at worst
    worst = hurt(every["grid"], every["examples"])[0]
    assert (worst["id"], worst["mean"]) == ("retain/5", -14.0)
    assert (worst["by_id"], worst["worst"]) == ("forget/5", -24.0)
    assert worst["question"] == "Where was retain author 5 born?"


def test_the_grid_puts_what_hurts_most_first(run):
    grid, examples = tables(run, "grid"), tables(run, "examples")
    (figure,) = grid_charts(grid, examples)
    drawn = figure.data[0]
    assert drawn["y"][0] == "retain/5: Where was retain author 5 born?"
    assert drawn["x"][0] == "forget/5: Where was forget author 5 born?"
    assert drawn["z"][0][0] == -24.0
    assert not any("<" in text for text in drawn["x"] + drawn["y"])
    ids = [(i, j) for i in range(90) for j in range(90)]
    many = [{"forget_id": f"f{i}", "retain_id": f"r{j}", "effect": float(i - j)} for i, j in ids]
    (figure,) = grid_charts({0: pa.Table.from_pylist(many)}, {})
    assert np.shape(figure.data[0]["z"]) == (MAX_PAIRS, MAX_PAIRS)


def test_the_check_tells_its_agreement_at_every_step(run):
    rows = effect_rows(RunDir(run).history_by_step())
    charts = {figure.title: figure for figure in check_charts(rows, tables(run, "examples"))}
    assert list(charts) == ["Predicted and true change of risk", "Mean change of risk", "Agreement"]
    cloud = charts["Predicted and true change of risk"]
    assert cloud.layout["annotations"][0]["text"] == "correlation 0.9990, explained 0.5000"
    stops = cloud.layout["sliders"][0]["steps"]
    assert stops[0]["args"][1]["annotations"][0]["text"] == "correlation 0.9990, explained 0.9900"
    # the diagonal always, forget and retain of the step
    assert stops[0]["args"][0]["visible"] == [True] * 3 + [False] * 8
    assert cloud.data[1]["x"] == pytest.approx([0.002 * (i + 1) for i in range(6)])
    assert [line["name"] for line in charts["Mean change of risk"].data] == [
        "forget predicted", "forget true", "retain predicted", "retain true",
    ]  # fmt: skip
    table = checks(rows)
    assert table["heads"][:3] == ["step size η", "correlation", "explained"]
    assert [(step, trusted) for step, _, trusted in table["rows"]][2:4] == [(20, 1.0), (30, 0.0)]
    assert checks([{"step": 0, "geffect/unlearn": 1.0}]) == {}


# -- the page of a run -------------------------------------------------------------------------------------


def test_a_report_shows_all_of_it(run):
    page = write_report(run).read_text(encoding="utf-8")
    figures = figures_of(page)
    counts = {name: sum(key.rpartition("-")[0] == name for key in figures) for name in SECTIONS}
    assert counts == dict(zip(SECTIONS, (12, 5, 4, 1, 3), strict=True))
    assert all(page.count(f'id="{key}"') == 1 for key in figures)
    for heading in ("G-effect", "G-effect by example", "Retain examples that forgetting hurts most"):
        assert heading in page
    assert page.count('class="doubt"') == 2
    assert '<span title="' in page
    assert "<h2>Training</h2>" in page
    assert not any(figure["title"].startswith("geffect") for figure in figures.values())


def test_a_report_without_a_probe_has_none_of_it(run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("geffect", "report.html"))
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    (bare / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = without_plotly(write_report(bare).read_text(encoding="utf-8"))
    assert "G-effect" not in page
    assert not any(key.startswith("geffect") for key in figures_of(page))


def test_text_of_examples_cannot_become_markup_and_nothing_is_loaded_from_elsewhere(run):
    page = without_plotly(write_report(run).read_text(encoding="utf-8")).replace(f'<a href="{SITE}', "<a")
    assert NASTY not in page
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>")
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


@pytest.mark.slow
def test_a_page_of_many_examples_and_steps_stays_small(tmp_path):
    path = write_run(tmp_path / "big", steps=tuple(range(30)), examples=40)
    page = without_plotly(write_report(path).read_text(encoding="utf-8"))
    assert len(page) < 2_000_000
    assert page.count('<tr><td class="words"><b>') == 2 * MAX_EXAMPLES


def test_a_table_that_cannot_be_read_is_named(run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "geffect/step-000010/grid.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"step-000010/grid\.parquet cannot be read"):
        write_report(broken)


def test_layers_are_counted_by_group(run, tmp_path):
    assert layers_of_groups(run) == {"deep": 2, "middle": 2, "shallow": 2}
    assert layers_of_groups(tmp_path) == {}


def test_folders_of_steps_are_found_in_order(run):
    assert list(probed_steps(run)) == [0, 10, 20, 30, 40]
    assert list(tables(run, "tokens", limit=2, columns=("logp",))) == [0, 40]
    assert tables(run, "tokens", limit=1, columns=("logp", "absent"))[40].column_names == ["logp"]
    assert tables(run.parent, "tokens") == {}


def test_the_tracker_gets_bounded_tables_of_the_last_step(run, tmp_path):
    made = {name: (columns, rows) for name, columns, rows in tracked(run)}
    assert list(made) == ["geffect/examples", "geffect/layers", "geffect/grid"]
    columns, rows = made["geffect/examples"]
    assert columns[:3] == ["step", "set", "id"]
    assert {row[0] for row in rows} == {40}
    sizes = [abs(row[columns.index("objective")]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    many = [{"forget_id": str(i), "retain_id": str(i), "effect": float(i)} for i in range(3000)]
    (tmp_path / "geffect/step-000001").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(many), tmp_path / "geffect/step-000001/grid.parquet")
    ((_, _, rows),) = tracked(tmp_path)
    assert len(rows) == MAX_ROWS["grid"]
    assert rows[0] == [1, "2999", "2999", 2999.0]


@pytest.mark.slow
def test_the_tracker_takes_them(run, tmp_path):
    tracker = open_tracker(
        TrackerConfig.model_validate({"mode": "offline"}),
        lambda: TrackedRun("geffect1", "n", "unlearn", "p", None, [], {}, tmp_path),
    )
    for name, columns, rows in tracked(run):
        tracker.table(name, columns, rows)
    tracker.finish()
    found = tmp_path.glob("wandb/offline-run-*/files/media/table/geffect/*")
    assert sorted(file.name.split("_")[0] for file in found) == ["examples", "grid", "layers"]


# -- runs compared -----------------------------------------------------------------------------------------


def test_an_interval_over_seeds():
    # s = 1, t(0.975; 2) = 4.302653: half is 4.302653/√3
    assert interval([1.0, 2.0, 3.0, None, math.nan]) == pytest.approx(Interval(2.0, 2.484138, 3), abs=1e-5)
    assert str(interval([1.0, 2.0, 3.0])) == "2.0000 ± 2.4841"
    assert str(interval([0.5])) == "0.5000"
    assert str(interval([])) == "–"
    assert interval([0.2, 0.1 + 0.1, 0.2]).half == 0.0


def test_runs_that_differ_in_the_seed_alone_are_one(study):
    runs, left_out = find_runs([str(study)])
    assert left_out == [("plain", "no G-effect in it")]
    groups = compared(runs)
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("npo beta=0.1", 3),
        ("npo beta=0.5", 3),
        ("rmu coefficient=2, layer=0.33", 1),
        ("rmu coefficient=6.5, layer=0.33", 1),
        ("rmu coefficient=2, layer=0.66", 1),
        ("rmu coefficient=6.5, layer=0.66", 1),
    ]
    assert groups[0].objective == "forget npo, retain nll"
    heads, rows = summary(groups)
    assert heads[:4] == ["method", "objective", "n", "unlearning effect"]
    assert rows[0][2] == "3"
    assert "±" in rows[0][3]
    assert "±" not in rows[2][3]
    assert rows[0][heads.index("trusted steps")] == "0.6000 ± 0.0000"
    assert rows[0][heads.index("forget risk, last")] == "4.2000 ± 0.0000"


def test_each_column_by_hand(tmp_path):
    """Two seeds of three steps: what the table says, from the numbers that the probe logged."""
    unlearn = {0: (-4.0, 1.0, -2.0), 1: (-1.0, -3.0, 6.0)}
    retain = {0: (-1.0, 0.0, 2.0), 1: (-1.0, -2.0, 2.0)}
    shares = {0: (0.5, 0.25, 0.75), 1: (0.5, 0.5, 0.5)}
    for seed in unlearn:
        path = write_run(tmp_path / f"run-{seed}", steps=(0, 1, 2), seed=seed)
        each = zip(unlearn[seed], retain[seed], shares[seed], strict=True)
        rows = []
        for step, (e_u, e_r, shallow) in enumerate(each):
            row = {"step": step, "geffect/unlearn": e_u, "geffect/retain": e_r}
            # Effects of two groups may have opposite signs; sizes are what is shared.
            row |= {"geffect/unlearn/shallow": shallow, "geffect/unlearn/deep": shallow - 1}
            rows.append(row)
        (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heads, (line,) = summary(compared(find_runs([str(tmp_path)])[0]))
    cells = dict(zip(heads, line, strict=True))
    assert cells["unlearning effect"] == str(interval([-5 / 3, 2 / 3]))
    assert cells["largest unlearning effect"] == str(interval([4.0, 6.0]))
    assert cells["shallow share"] == cells["deep share"] == "0.5000 ± 0.0000"
    assert cells["embedding share"] == "0.0000 ± 0.0000"
    assert cells["retaining effect"] == str(interval([1 / 3, -1 / 3]))
    assert cells["retaining effect < 0"] == str(interval([1 / 3, 2 / 3]))
    assert "retain risk, last" not in cells


def test_weights_that_spare_the_retain_set_have_a_negative_rank_correlation():
    columns = {"set": ["forget"] * 4 + ["retain"], "weight": [0.1, 0.2, 0.4, 1.0, None]}
    falling = pa.table(columns | {"retain": [100.0, 3.0, 2.0, -1.0, 5.0]})
    assert rank_correlation(falling, "retain") == pytest.approx(-1.0)
    swapped = pa.table(columns | {"retain": [1.0, 3.0, 2.0, 4.0, -9.0]})
    assert rank_correlation(swapped, "retain") == pytest.approx(0.8)  # 1 − 6·2/(4·15)
    constant = pa.table(columns | {"weight": [1.0] * 4 + [None], "retain": [1.0, 3.0, 2.0, 4.0, 0.0]})
    assert rank_correlation(constant, "retain") is None
    assert rank_correlation(pa.table(columns), "retain") is None


def test_labels_distinguish_settings_by_as_few_words_as_needed():
    assert shortest(["forget.weighting.beta", "forget.beta", "lr"]) == {
        "forget.weighting.beta": "weighting.beta",
        "forget.beta": "forget.beta",
        "lr": "lr",
    }


def test_an_objective_is_named_by_its_slot():
    keys = ["retain.objective", "forget.objective", "forget.layer"]
    assert list(shortest(keys).values()) == ["retain", "forget", "layer"]


def test_the_same_run_twice_counts_once(tmp_path):
    write_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs, left_out = find_runs([str(tmp_path)])
    assert [run.name for run in runs] == ["a"]
    assert left_out == [("b", "the same configuration and seed as a")]


def test_many_settings_have_the_colour_of_their_method_and_a_dash_of_their_own(study):
    groups = compared(find_runs([str(study)])[0])
    few = styles(groups)
    assert len({colour for colour, _ in few.values()}) == 6
    assert {dash for _, dash in few.values()} == {"solid"}
    twice = [replace(group, label=f"{group.label}{i}") for group in groups for i in range(2)]
    many = styles(twice)
    assert len(set(many.values())) == len(twice) - 2  # eight of RMU have six dashes
    assert len({colour for colour, _ in many.values()}) == 2


def test_other_data_or_another_model_is_another_group(tmp_path):
    first, second = (write_run(tmp_path / name) for name in ("a", "b"))
    config = json.loads((second / "config.yaml").read_text())
    config["dataset"]["forget"] = "forget05"
    (second / "config.yaml").write_text(json.dumps(config))
    runs, _ = find_runs([str(first), str(second)])
    assert [group.label for group in compared(runs)] == ["npo forget=forget10", "npo forget=forget05"]


def test_saved_models_are_named_after_the_objective_that_was_looked_at(tmp_path):
    path = write_run(tmp_path / "a", method="none")
    config = json.loads((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(json.dumps(config | {"probe": {"method": "wga"}}))
    found = read_run(path)
    assert found.method == "wga"
    named = {"name": "mine", "forget": {"objective": "npo", "beta": 0.3}}
    (path / "config.yaml").write_text(json.dumps(config | {"probe": {"method": named}}))
    found = read_run(path)
    assert (found.method, found.settings["method.forget.beta"]) == ("mine", 0.3)


def test_a_comparison_draws_methods_groups_settings_and_weights(study):
    runs, _ = find_runs([str(study / "npo-*"), str(study / "rmu-*")])
    sections = study_charts(compared(runs))
    effect = sections["effects"][0]
    assert [trace["name"] for trace in effect.data if "name" in trace][:2] == ["npo beta=0.1", "npo beta=0.5"]
    assert sum(trace.get("fill") == "tonexty" for trace in effect.data) == 2  # with several seeds
    assert len(sections["groups"]) == 2 * len(GROUPS)
    assert [figure.title for figure in sections["families"]] == [
        "Unlearning effect · npo",
        "Retaining effect · npo",
        "Unlearning effect · rmu",
        "Retaining effect · rmu",
    ]
    titles = [figure.title for figure in sections["settings"]]
    assert titles == [
        f"{kind} by {name} · {method}"
        for method, name in (("npo", "beta"), ("rmu", "coefficient"), ("rmu", "layer"))
        for kind in ("Unlearning effect", "Retaining effect")
    ]
    by_layer = sections["settings"][4]
    assert [(line["name"], line["x"]) for line in by_layer.data] == [
        ("coefficient=2", [0.33, 0.66]),
        ("coefficient=6.5", [0.33, 0.66]),
    ]
    assert [figure.title for figure in sections["weights"]] == [
        "Weight against likelihood",
        "Weights over the steps · npo beta=0.1",
        "Weights over the steps · npo beta=0.5",
    ]
    line = next(trace for trace in sections["weights"][0].data if trace.get("name") == "npo beta=0.1")
    # the made-up weights are p²
    assert line["y"] == pytest.approx([x**2 for x in line["x"]], abs=0.03)


def test_a_comparison_is_a_page_a_table_and_numbers(study, tmp_path, capsys):
    main([str(study), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "plain" in printed.err
    assert printed.out.splitlines() == [str(tmp_path / f"out/geffect.{end}") for end in ("html", "md", "csv")]
    page = without_plotly((tmp_path / "out/geffect.html").read_text(encoding="utf-8"))
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<tr><td") == 6
    assert len(figures_of(page)) == sum(page.count(f'id="{key}"') for key in figures_of(page))
    assert "| npo beta=0.1 | forget npo, retain nll | 3 |" in (tmp_path / "out/geffect.md").read_text()
    with (tmp_path / "out/geffect.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * 5
    one = next(row for row in rows if row["run"] == "npo-0.5-1" and row["step"] == "20")
    logged = next(row for row in RunDir(study / "npo-0.5-1").history_by_step() if row["step"] == 20)
    assert float(one["geffect/unlearn"]) == pytest.approx(logged["geffect/unlearn"], rel=1e-5)
    assert (one["method"], one["seed"]) == ("npo beta=0.5", "1")


def test_an_archive_gives_the_same_and_grows(study, tmp_path):
    """Two of three seeds kept, the third added from its folder: the table and charts by step of all three."""
    kept = tmp_path / "study.json.gz"
    main([str(study / "*-[01]"), "--out", str(tmp_path / "two"), "--keep", str(kept)])
    main([str(kept), str(study), "--out", str(tmp_path / "all"), "--keep", str(kept)])
    main([str(kept), "--out", str(tmp_path / "kept")])
    main([str(study), "--out", str(tmp_path / "folders")])
    written = {name: (tmp_path / name / "geffect.md").read_text() for name in ("all", "kept", "folders")}
    assert written["all"] == written["kept"] == written["folders"]
    assert len(find_runs([str(kept)])[0]) == 10
    drawn_by_step = study_charts(compared(find_runs([str(kept)])[0]))
    assert [figure.title for figure in drawn_by_step["effects"]] == [
        figure.title for figure in study_charts(compared(find_runs([str(study)])[0]))["effects"]
    ]
    assert drawn_by_step["weights"] == []  # an archive keeps no tokens


def test_an_archive_keeps_nothing_of_a_run_under_way(tmp_path):
    for seed in (0, 1):
        under_way = write_run(tmp_path / f"runs/npo-{seed}", seed=seed)
    (under_way / "results.json").unlink()
    kept = tmp_path / "study.json.gz"
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--keep", str(kept)])
    assert [run.seed for run in find_runs([str(kept)])[0]] == [0]


@pytest.mark.parametrize(
    ("archive", "begins"),
    [
        ("geffect", "| method | largest unlearning effect | embedding share |"),
        ("geffect-knobs", "| method | largest unlearning effect | retaining cosine |"),
    ],
)
def test_the_tables_of_the_documents_are_those_of_their_archives(tmp_path, archive, begins):
    """Of the columns that the command makes the page has some, each as it is."""
    page = (ROOT / "docs/geffect.md").read_text(encoding="utf-8")
    main([str(ROOT / f"docs/data/{archive}.json.gz"), "--out", str(tmp_path)])
    lines = [line for line in (tmp_path / "geffect.md").read_text().splitlines() if line.startswith("|")]
    made = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    shown = next(line for line in page.splitlines() if line.startswith(begins))
    chosen = [made[0].index(cell.strip()) for cell in shown.strip("|").split("|")]
    table = ["| " + " | ".join(row[i] for i in chosen) + " |" for row in made]
    assert len(table) > 2
    shown_rows = [line for line in page.splitlines() if line in table]
    assert {*shown_rows} == {*table}


def test_an_archive_of_something_else_is_refused(study, tmp_path, capsys):
    results = tmp_path / "results.json.gz"
    write_packed(results, "runs", [])
    assert main([str(results), "--out", str(tmp_path / "out")]) == 2
    assert "no archive of measurements ('measurements'); --keep of unlearn geffect" in capsys.readouterr().err
    assert main([str(study), "--out", str(tmp_path / "out"), "--keep", "study.json"]) == 2
    assert "study.json: name a file that ends in .json.gz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("absent-*", "absent-*: no such directory, archive or pattern"),
        ("", "no run in it"),
        ("plain", "=geffect"),
    ],
)
def test_what_is_missing_is_reported(study, tmp_path, capsys, given, says):
    target = study / given if given else tmp_path
    assert main([str(target), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_says_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "probe=geffect" in printed
    assert "patterns" in printed


def test_weights_of_other_rows_do_not_count():
    rows = tokens(random.Random(0), 2, True, 0)
    p, weight = pairs(pa.Table.from_pylist(rows))
    assert len(p) == len(weight) == 20  # the retain tokens have none
    assert weight == pytest.approx(p**2)
    assert pairs(pa.table({"logp": [0.0]}))[0].size == 0


@pytest.mark.slow
def test_a_browser_draws_both_pages_without_an_error(run, study, tmp_path):
    page, *_ = write_study(find_runs([str(study)])[0], tmp_path / "out")
    for file in (write_report(run), page):
        drawn(file, tmp_path / "profile", charts=len(figures_of(file.read_text())))
