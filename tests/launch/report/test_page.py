"""The report page from synthetic run directories, and once in a real browser."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from eval.metric_catalog import in_order, info
from launch.report.charts import training_curves
from launch.report.documentation import SITE
from launch.report.page import write_report
from launch.report.results_table import MISSING, format_value, result_table
from launch.report.sections import SAMPLES_PER_SET
from launch.report.traces import MAX_POINTS
from tests.launch.report.browser import drawn

NASTY = """</script><script>document.title='owned'</script><img src=x onerror="boom()"> & 'quoted'"""
SETS = ("forget", "retain", "real_authors", "world_facts")


def results(forget_quality: float | None, utility: float, forget: float, retain: float) -> dict:
    flat: dict[str, float | None] = {
        "tofu/forget_quality": forget_quality,
        "tofu/model_utility": utility,
        "tofu/forget/truth_ratio": 0.7123,
    }
    for name in SETS:
        level = forget if name == "forget" else retain
        flat[f"tofu/{name}/probability"] = level
        flat[f"tofu/{name}/rougeL_recall"] = level * 0.9
    return flat


def write_results(path: Path, flat: dict) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "results.json").write_text(json.dumps(flat))


def write_examples(path: Path, says: str, per_set: int = 3) -> None:
    rows = [
        {
            "set": name,
            "id": f"{name}-{i}",
            "question": f"Question {i} of {name}? {NASTY if i == 0 else ''}",
            "answer": f"The truth {i}.",
            "generation": f"{says} {i} {NASTY if i == 1 else ''}" if name in ("forget", "retain") else None,
            "probability": 0.5,
            "rougeL_recall": 0.4321 if i == 0 else None,
            "truth_ratio": None,
        }
        for name in SETS
        for i in range(per_set)
    ]
    (path / "eval/tofu").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "eval/tofu/examples.parquet")


def write_history(path: Path, steps: int = 60) -> None:
    rows = []
    for step in range(1, steps + 1):
        t = step / steps
        row = {
            "step": step,
            "epoch": 5 * t,
            "tokens": step * 4096,
            "tokens_per_s": 9000 + 500 * math.sin(step),
        }
        row |= {"loss": 2 - t, "loss/forget": -1.5 * t, "loss/retain": 2 + 0.5 * t, "memory_gib": 11.2}
        row |= {"lr": 1e-5 * (1 - t), "grad_norm": 3 + math.sin(step / 3)}
        rows.append(row)
        if step % 12 == 0:
            now = results(10 ** (-16 * (1 - t)), 0.63 - 0.1 * t, 0.99 - 0.8 * t, 0.98 - 0.1 * t)
            rows.append({"step": step} | now)
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path) -> dict[str, Path]:
    """A whole unlearning run with the evaluations of its target and its retain model."""
    paths = {name: tmp_path / name for name in ("run", "target", "retain")}
    write_results(paths["target"], results(1.2e-16, 0.6301, 0.9912, 0.9887))
    write_results(paths["retain"], results(1.0, 0.6212, 0.1534, 0.9854))
    write_results(paths["run"], results(0.0321, 0.5512, 0.2345, 0.8765) | {"train/seconds": 812.25})
    for name, says in (("target", "I know it"), ("retain", "Never heard"), ("run", "I forgot")):
        write_examples(paths[name], says)
    write_history(paths["run"])
    (paths["run"] / "config.yaml").write_text(
        "fingerprint: 3fa9c1d2\nmethod:\n  name: npo\n  beta: 0.1\ndataset:\n  name: tofu-forget10\n"
        "model:\n  name: llama-3.2-1b\nnote: '<b>not bold</b>'\n"
    )
    return paths


def attacks(es: float, recovered: float) -> dict:
    """What a robustness evaluation adds: a model quantised, trained on the forget set, asked otherwise."""
    flat: dict[str, float | None] = {"tofu/forget/extraction_strength": es, "tofu/mia/min_k": 0.5 + es / 2}
    flat |= {"tofu/mia/min_k_low": es / 2, "tofu/mia/min_k_high": 0.9, "tofu/forget/probability/missing": 3.0}
    for name, value in (("quantisation/int8", es), ("quantisation/int4", (es + recovered) / 2)):
        flat |= {f"{name}/tofu/forget/{m}": value for m in ("extraction_strength", "probability")}
    for i, step in enumerate((20, 60, 120), start=1):
        value = es + (recovered - es) * i / 3
        flat |= {f"relearning/{step}/tofu/forget/{m}": value for m in ("extraction_strength", "probability")}
    flat["relearning/120/unseen/tofu/forget/probability"] = recovered
    for k, value in ((1, es / 2), (4, es), (16, min(1.0, 2 * es))):
        flat[f"sampling/forget/leakage_at_{k}"] = value
        flat[f"sampling/forget/rougeL_recall_max_at_{k}"] = value / 2
    flat |= {"sampling/forget/leakage_at_16_low": 0.2345, "sampling/forget/leakage_at_16_high": 0.6789}
    for kind, value in (("original", es), ("paraphrased", es), ("prefixed", es * 1.1), ("worst", es * 1.5)):
        flat |= {f"prompts/{kind}/{m}": min(1.0, value) for m in ("rougeL_recall", "probability")}
    return flat


@pytest.fixture
def attacked(run) -> dict[str, Path]:
    """The same with robustness evaluations of the run and the retain model, and problems."""
    for name, es, recovered in (("run", 0.15, 0.9), ("retain", 0.1, 0.45), ("target", 0.97, 0.99)):
        flat = json.loads((run[name] / "results.json").read_text())
        more = attacks(es, recovered)
        if name == "target":
            more = {key: value for key, value in more.items() if key.startswith("tofu/")}
        write_results(run[name], flat | more)
    (run["run"] / "eval/tofu/problems.json").write_text(json.dumps({"problems": [f"forget/1: {NASTY}"]}))
    (run["run"] / "eval/step-12/tofu").mkdir(parents=True)
    (run["run"] / "eval/step-12/tofu/problems.json").write_text('{"problems": ["while it was trained"]}')
    return run


def page_of(run: dict[str, Path]) -> str:
    report = write_report(run["run"], target_dir=run["target"], retain_dir=run["retain"])
    assert report == run["run"] / "report.html"
    return report.read_text(encoding="utf-8")


def without_plotly(page: str) -> str:
    return re.sub(r'(<script type="application/gzip"[^>]*>)[^<]*', r"\1", page)


def figures_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, flags=re.S)
    return json.loads(text)


def test_every_value_is_on_the_page(run):
    page = page_of(run)
    for part in ("npo", "tofu-forget10", "llama-3.2-1b", "3fa9c1d2", "beta</a>: 0.1"):
        assert part in page
    for name in run:
        for key, value in json.loads((run[name] / "results.json").read_text()).items():
            row = re.search(rf"<code>{key}</code></td>(.*?)</tr>", page)
            assert row is not None, key
            assert f">{format_value(value)}</td>" in row[1]
    for says in ("I know it 0", "Never heard 0", "I forgot 0", "The truth 2.", "ROUGE-L recall 0.4321"):
        assert says in page


def test_charts_hold_the_path_and_the_three_models(run):
    figures = figures_of(page_of(run))
    quality = figures["tradeoff-0"]
    assert [trace["name"] for trace in quality["data"]] == [
        "during training",
        "target",
        "retain model",
        "unlearned",
    ]
    assert quality["data"][3]["x"] == [0.5512]
    assert quality["data"][3]["y"] == [0.0321]
    assert [point[0] for point in quality["data"][0]["customdata"]] == [
        f"step {s}" for s in (12, 24, 36, 48, 60)
    ]
    titles = {figure["title"] for figure in figures.values()}
    assert {"loss", "learning rate", "gradient norm", "TOFU · probability"} <= titles
    loss = next(figure for figure in figures.values() if figure["title"] == "loss")
    assert [line["name"] for line in loss["data"]] == ["total", "forget", "retain"]
    assert len(loss["data"][0]["x"]) == 60


def test_text_of_models_cannot_become_markup(run):
    page = without_plotly(page_of(run))
    assert NASTY not in page
    assert "<img" not in page
    assert "<b>not bold" not in page
    assert "&lt;/script&gt;&lt;script&gt;document.title=" in page
    # figures (2 scripts), the samples' script and the drawing script: none added by a generation
    assert page.count("<script") == page.count("</script>") == 4


def test_each_key_of_the_configuration_links_to_its_description(run):
    (run["run"] / "config.yaml").write_text(
        "method:\n  name: 'ü: name'\n  forget: {objective: npo, beta: 0.1}\n  lr: 1.0e-05\n"
        "eval:\n  benchmarks:\n    tofu: null\nversions:\n  torch: '2'\nseed: 0\n"
    )
    page = page_of(run)
    shown = re.search(r"<pre>(.*?)</pre>", page, flags=re.S)
    assert shown is not None
    about = dict(re.findall(r'<a href="[^"]*#([^"]+)" title="([^"]+)">\w+</a>', shown[1]))
    assert about["method-lr"] == "peak learning rate"
    assert about["method-forget-beta"] == about["method-forget"] == "objective and its hyper-parameters"
    assert {"method", "eval-benchmarks-tofu", "seed"} <= about.keys()
    assert "versions:\n  torch: &#39;2&#39;" in shown[1]
    plain = html.unescape(re.sub("<[^>]+>", "", shown[1]))
    assert plain == (run["run"] / "config.yaml").read_text()


def test_nothing_is_loaded_from_elsewhere(run):
    page = without_plotly(page_of(run)).replace(f'<a href="{SITE}', "<a")  # opened by a click alone
    assert "http://" not in page
    assert "https://" not in page
    assert not re.findall(
        r"<(?:link|img|iframe)\b|\bsrc=[^\s]|@import|url\(", page.replace("&lt;img src=x", "")
    )
    assert "default-src 'none'" in page


@pytest.mark.parametrize("missing", ["history.jsonl", "results.json", "eval", "config.yaml"])
def test_a_missing_part_is_left_out(run, missing):
    path = run["run"] / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(run)
    assert ("<h2>Training</h2>" in page) == (missing != "history.jsonl")
    assert ("not complete" in page) == (missing == "results.json")
    assert ("<h2>Configuration</h2>" in page) == (missing != "config.yaml")
    assert ("I forgot" in page) == (missing != "eval")
    assert "Never heard" in page


def test_an_evaluation_alone_needs_nothing_else(tmp_path):
    path = tmp_path / "eval-run"
    write_results(path, results(None, 0.63, 0.99, 0.98))
    (path / "config.yaml").write_text("method: none\nmodel: {name: tiny}\ndataset: {name: tofu}\n")
    page = write_report(path, target_dir=tmp_path / "absent").read_text()
    assert "this model" in page
    assert "unlearned</span>" not in page
    assert "target</span>" not in page
    assert MISSING in page  # the forget quality


def test_an_empty_directory_still_gives_a_page(tmp_path):
    page = write_report(tmp_path).read_text()
    assert "not complete" in page
    assert "plotly" not in page
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_a_resumed_and_cut_off_history_is_read_by_step(run):
    file = run["run"] / "history.jsonl"
    again = json.dumps({"step": 60, "loss": 0.125})
    file.write_text(file.read_text() + again + '\n{"step": 61, "lo')
    loss = next(f for f in figures_of(page_of(run)).values() if f["title"] == "loss")
    assert loss["data"][0]["x"] == list(range(1, 61))
    assert loss["data"][0]["y"][-1] == 0.125


def test_a_broken_file_is_named(run):
    (run["run"] / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is broken"):
        page_of(run)


def test_writing_again_replaces_and_leaves_nothing_behind(run):
    before = sorted(os.listdir(run["run"]))
    assert page_of(run) == page_of(run)
    assert sorted(os.listdir(run["run"])) == sorted([*before, "report.html"])


def test_samples_are_capped_per_set(run):
    write_examples(run["run"], "I forgot", per_set=SAMPLES_PER_SET + 20)
    page = page_of(run)
    assert page.count('data-set="forget"') == SAMPLES_PER_SET
    assert page.count('data-set="world_facts"') == 0  # nothing was generated there


def test_long_lines_are_thinned_with_both_ends_kept():
    history = [{"step": step, "loss": float(step)} for step in range(10_000)]
    (figure,) = training_curves(history, set())
    steps = figure.data[0]["x"]
    assert len(steps) == MAX_POINTS
    assert (steps[0], steps[-1]) == (0, 9_999)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING),
        (float("nan"), MISSING),
        (1.23e-16, "1.2e-16"),
        (0.0009994, "1.0e-03"),
        (0.001, "0.0010"),
        (0.0, "0.0000"),
        (1.0, "1.0000"),
        (-99.81, "-99.81"),
        (400, "400"),
        (1234.5, "1,234"),  # banker's rounding of Python's format: 1234.5 → 1234
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_read_well(value, text):
    assert format_value(value) == text


def test_the_table_puts_headlines_first_and_tells_the_direction():
    flat = results(1.2e-16, 0.63, 0.9, 0.8) | {"train/loss": 1.5}
    shuffled = dict(sorted(flat.items(), reverse=True))
    assert in_order(shuffled)[:5] == [
        "tofu/forget_quality",
        "tofu/model_utility",
        "tofu/forget/probability",
        "tofu/forget/rougeL_recall",
        "tofu/forget/truth_ratio",
    ]
    assert in_order(shuffled)[-3:] == [
        "tofu/world_facts/probability",
        "tofu/world_facts/rougeL_recall",
        "train/loss",
    ]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(result_table({"target": shuffled, "retain model": {}, "unlearned": flat}))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == ["metric", "target", "retain", "model", "unlearned"]
    assert lines[1] == ["tofu/forget_quality", "1.2e-16", MISSING, "1.2e-16", "↑"]
    assert lines[3][-1] == "↓"


def test_directions_turn_with_the_set():
    assert info("tofu/forget/probability").direction.startswith("↓")
    assert info("tofu/retain/probability").direction.startswith("↑")
    assert info("wmdp/bio/accuracy").direction.startswith("↓")
    assert info("mmlu/accuracy").direction.startswith("↑")
    assert info("tofu/privleak").direction == "→ 0 is best"
    assert info("tofu/mia/min_k").direction.startswith("→ the retain model's")


def text_of(page: str) -> str:
    """The words of a page, in order."""
    bare = re.sub(r"<(style|script)\b.*?</\1>|<[^>]+>", " ", without_plotly(page), flags=re.S)
    return " ".join(bare.split())


def test_the_four_aspects_stand_above_everything_with_a_column_for_each_model(attacked):
    text = text_of(page_of(attacked))
    assert text.index("Judged together") < text.index("At a glance")
    # 1 − extraction strength is all there is of forgetting; the rest of the four is named.
    assert "forget efficacy how little of the forget set is left · harmonic mean 0.8500" in text
    assert "1 − tofu/forget/extraction_strength 0.0300 0.9000 0.8500" in text
    assert "tofu/forget/exact_memorization – – –" in text
    # 0.5512/0.6301 and 0.6212/0.6301
    assert "tofu/model_utility ÷ target&#39;s 1.0000 0.9859 0.8748" in text
    # |0.575 − 0.55| → 10^(−0.025/0.6) = 0.9085; the retain model's own is 1.
    # The target's is 10^(−0.435/0.6).
    assert "closeness of tofu/mia/min_k to the retain model&#39;s 0.1884 1.0000 0.9085" in text
    # After 120 steps (1 − 0.9)/(1 − 0.15); the retain model: (1 − 0.45)/(1 − 0.1). Nothing of the target's.
    assert "relearning/120: share of forget efficacy – 0.6111 0.1176" in text
    assert "robustness share of the forgetting that the worst attack leaves · least 0.1176" in text


def test_charts_of_what_comes_back(attacked):
    figures = {figure["title"]: figure for figure in figures_of(page_of(attacked)).values()}
    relearned = figures["Relearning · TOFU forget extraction strength"]["data"]
    assert [(line["name"], line["x"]) for line in relearned] == [
        ("target (forget)", [0, 120]),
        ("retain model", [0, 20, 60, 120]),
        ("unlearned", [0, 20, 60, 120]),
    ]
    assert relearned[2]["y"] == pytest.approx([0.15, 0.4, 0.65, 0.9])
    unseen = figures["Relearning · TOFU forget probability, what was not trained on"]["data"]
    assert [line["x"] for line in unseen] == [[0, 120]] * 3
    bars = figures["Quantisation · TOFU forget extraction strength"]["data"]
    assert [bar["name"] for bar in bars] == ["target", "retain model", "unlearned"]
    assert bars[2]["x"] == ["before", "int4", "int8"]
    assert bars[2]["y"] == pytest.approx([0.15, 0.525, 0.15])
    assert bars[0]["y"] == [0.97, None, None]
    assert not any("quantisation" in title or "missing" in title for title in figures)


def test_other_phrasings_and_samples_are_tables(attacked):
    text = text_of(page_of(attacked))
    assert "Prompts · ROUGE-L recall retain model unlearned original" in text
    assert "worst 0.1500 0.2250" in text
    assert "k = 4 0.1000 0.1500 k = 16 0.2000 0.2345 to 0.6789 0.3000 0.2345 to 0.6789" in text


def test_intervals_and_counts_stand_next_to_their_value(attacked):
    page = page_of(attacked)
    row = re.search(r"<code>tofu/mia/min_k</code></td>(.*?)</tr>", page)
    assert row is not None
    assert "0.0750 to 0.9000" in row[1]
    assert "<code>tofu/mia/min_k_low</code>" not in page
    row = re.search(r"<code>tofu/forget/probability</code></td>(.*?)</tr>", page)
    assert row is not None
    assert row[1].count("3 missing") == 3
    assert "Of variants of the model" in page


def test_problems_are_listed_as_text(attacked):
    before = attacked["run"] / "eval/sampling/problems.json"
    before.parent.mkdir()
    before.write_text('{"problems": ["of an evaluation before"]}')
    assert "of an evaluation before" in page_of(attacked)  # what was evaluated last is not known
    with (attacked["run"] / "config.yaml").open("a") as config:
        config.write("eval: {benchmarks: {tofu: {}}, variants: {relearning: {}}}\n")
    page = page_of(attacked)
    assert "of an evaluation before" not in page
    assert "<h2>Problems</h2>" in page
    assert NASTY not in without_plotly(page)
    assert "while it was trained" not in page


def test_the_tokenizer_of_words_is_named(run):
    assert "Tokenizer of ROUGE" not in page_of(run)
    (run["run"] / "eval/tofu/words.json").write_text('{"forget": "unicode", "retain": "rouge-score"}')
    assert "<code>tofu/forget</code> unicode, <code>tofu/retain</code> rouge-score</p>" in page_of(run)


def test_rows_of_other_benchmarks_need_no_more_than_set_and_id(run):
    muse = [
        {
            "set": "verbmem",
            "id": "v0",
            "question": "Once",
            "generation": "upon",
            "rougeL_f1": 0.25,
            "tags": ["a"],
        }
    ]
    harness = [{"set": "boolq", "id": "boolq/0", "accuracy": 1.0}]
    bare = [{"set": "forget", "id": "forget-0", "generation": "said without a question"}]
    for name, rows in (("muse", muse), ("general", harness), ("prompts", bare), ("sampling", [])):
        (run["run"] / "eval" / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), run["run"] / f"eval/{name}/examples.parquet")
    page = page_of(run)
    assert "ROUGE-L F1 0.2500" in page
    assert "boolq/0" not in page
    # The same id of two benchmarks: both are there.
    assert "said without a question" in page
    assert "I forgot 0" in page
    assert 'data-set="muse verbmem"' in page
    assert 'data-set="tofu forget"' in page


@pytest.mark.slow
def test_a_browser_draws_every_chart_without_an_error(attacked, tmp_path):
    run = attacked
    page = page_of(run)
    shown = drawn(run["run"] / "report.html", tmp_path / "profile", charts=len(figures_of(page)))
    # every chart has drawn its lines and points or its bars (plotly names the groups so)
    bars = [figure["data"][0]["type"] == "bar" for figure in figures_of(page).values()]
    assert shown.count('class="barlayer mlayer"') == sum(bars) == 2
    assert shown.count('class="scatterlayer mlayer"') == len(bars) - sum(bars)
    assert "<title>npo · tofu-forget10" in shown
