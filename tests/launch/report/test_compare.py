"""Runs compared: what is found, averaged and marked, how it is written, and the page in a browser."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from rich.console import Console

from launch.report.compare.command import main, make, write
from launch.report.compare.discover import find
from launch.report.compare.export import escaped, in_csv, in_latex, in_markdown, latex
from launch.report.compare.page_data import cut, max_examples, max_points
from launch.report.compare.ranking import ranks
from launch.report.compare.rows import Comparison, Row, compared
from launch.report.compare.runs import ComparedRun, read_run
from launch.report.compare.tables import heads, lines, terminal
from launch.report.compare.wandb_exports import read_export
from launch.report.documentation import SITE
from launch.report.kept import read_archive, write_archive
from launch.report.run_groups import Unusable
from launch.report.statistics import mean
from tests.launch.report.browser import drawn
from tests.launch.report.compare_files import write_anchors, write_examples, write_run, write_sweep
from tests.launch.tracking.wandb_files import finished_records
from tests.paths import ROOT
from unlearn.errors import UserError

NASTY = """</script><script>document.title='owned'</script><img src=x onerror="boom()"> & 'quoted'"""
UTILITY, QUALITY, LEAK = "tofu/model_utility", "tofu/forget_quality", "tofu/privleak"


def of(method: str = "npo", seed: Any = 0, **results: float | None) -> ComparedRun:
    keys = {"utility": UTILITY, "quality": QUALITY, "leak": LEAK, "auc": "tofu/mia/min_k"}
    return ComparedRun(f"{method}-{seed}", method, {}, seed, {keys[k]: v for k, v in results.items()})


def row(kind: Any = "run", **results: float | None) -> Row:
    return Row(kind, "m", "m", "", {}, [of("m", 0, **results)])


def table(*runs: ComparedRun, metrics: tuple[str, ...] = (UTILITY,), anchors: Any = ()) -> Comparison:
    return compared(list(runs), list(anchors), list(metrics))


# -- means and intervals -----------------------------------------------------------------------------------


def test_a_mean_has_students_interval_and_one_run_has_none():
    found = mean("x/model_utility", [{"x/model_utility": v} for v in (0.5, 0.6, 0.7)])
    # s = 0.1, t(0.975; 2) = 4.30265: half = 4.30265 · 0.1/√3 = 0.248414
    assert found.mean == pytest.approx(0.6)
    assert found.high - found.mean == pytest.approx(0.248414, rel=1e-5)
    assert found.mean - found.low == pytest.approx(0.248414, rel=1e-5)
    assert str(found) == "0.6000 ± 0.2484"
    alone = mean("u", [{"u": 0.5}])
    assert (alone.mean, alone.n, str(alone)) == (0.5, 1, "0.5000")
    assert math.isnan(alone.low)
    assert str(mean("u", [])) == "–"
    assert str(mean("u", [{"u": 0.5}] * 3)) == "0.5000 ± 0.0000"


def test_what_could_not_be_measured_is_counted_and_no_zero():
    found = mean("u", [{"u": 0.4}, {"u": None}, {"u": math.nan}, {"u": 0.6}, {}])
    assert (found.mean, found.n, found.missing) == (0.5, 2, 2)


def test_forget_quality_is_averaged_by_its_logarithm():
    found = mean(QUALITY, [{QUALITY: 1e-2}, {QUALITY: 1e-4}])
    # logarithms −2 and −4: mean −3, s = √2, t(0.975; 1) = 12.7062, half = 12.7062 · √2/√2
    assert found.mean == pytest.approx(1e-3)
    assert math.log10(found.low) == pytest.approx(-15.7062, rel=1e-5)
    assert found.high == 1.0  # a p-value is at most that
    assert str(found) == "0.0010 (2.0e-16 to 1.0000)"
    assert mean(QUALITY, [{QUALITY: 0.0}, {QUALITY: 1.0}]).mean == pytest.approx(10 ** (-323.3 / 2), rel=0.1)
    assert mean(QUALITY, [{QUALITY: 0.0}]).mean == 0.0


# -- the best of a column ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        (UTILITY, (0.5, 0.7, 0.6), [None, 1, 2]),  # more is better
        ("tofu/forget/probability", (0.5, 0.7, 0.1), [2, None, 1]),  # less is forgetting
        ("tofu/retain/probability", (0.5, 0.7, 0.1), [2, 1, None]),
        (LEAK, (-30.0, 4.0, 5.0), [None, 1, 2]),  # 0 is best
        (UTILITY, (0.7, 0.7, 0.6), [1, 1, 2]),
        (UTILITY, (0.7, 0.7, 0.7), [None, None, None]),  # no run is better
        (UTILITY, (0.7, None, None), [None, None, None]),
        (UTILITY, (None, 0.6, 0.7), [None, 2, 1]),
        ("tofu/unheard_of", (0.1, 0.2, 0.3), [None, None, None]),  # which way is good is not known
    ],
)
def test_best_and_second_best_follow_the_direction(key, values, expected):
    rows = [Row("run", "m", "m", "", {}, [ComparedRun("r", "m", {}, 0, {key: v})]) for v in values]
    assert ranks(key, rows) == expected


def test_a_membership_auc_is_best_near_the_retain_models():
    rows = [row(auc=0.5), row(auc=0.42), row(auc=0.9)]
    assert ranks("tofu/mia/min_k", rows) == [1, 2, None]  # 0.5 where no retain model is known
    assert ranks("tofu/mia/min_k", rows, [row("retain model", auc=0.4), row("target", auc=0.9)]) == [
        2,
        1,
        None,
    ]


# -- rows --------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_the_seed_alone_are_a_row(tmp_path):
    for lr in (1e-5, 2e-5):
        for seed in (0, 1):
            write_run(
                tmp_path / f"npo-{lr}-{seed}",
                lr=lr,
                seed=seed,
                keys={"forget": {}},
                results={UTILITY: lr * 1e4 + 0.1 * seed},
            )
    write_run(tmp_path / "rmu", method="rmu", keys={"forget": {"coefficient": 2.0}}, results={UTILITY: 0.9})
    found, every = make(find([str(tmp_path)]))
    assert every == [UTILITY]
    assert [(r.label, len(r.runs), round(r.mean(UTILITY).mean, 6)) for r in found.rows] == [
        ("npo lr=1e-05", 2, 0.15), ("npo lr=2e-05", 2, 0.25), ("rmu", 1, 0.9),
    ]  # fmt: skip
    assert dict(found.keys) == {"method.lr": "lr", "method.forget.coefficient": "coefficient"}
    assert found.minor == {"method.forget.coefficient"}  # it comes with the method


def test_a_row_may_be_of_chosen_settings(tmp_path):
    for lr in (1e-5, 2e-5):
        for beta in (0.1, 0.5):
            keys = {"forget": {"objective": "npo", "beta": beta}}
            write_run(tmp_path / f"{lr}-{beta}", lr=lr, keys=keys, results={UTILITY: lr * 1e4 + beta})
    found, _ = make(find([str(tmp_path)]), group_by=["beta"])
    assert [(r.label, len(r.runs)) for r in found.rows] == [("beta=0.1", 2), ("beta=0.5", 2)]
    assert found.rows[0].mean(UTILITY).mean == pytest.approx(0.25)  # of 0.2 and 0.3
    found, _ = make(find([str(tmp_path)]), group_by=["method"])
    assert [(r.label, len(r.runs)) for r in found.rows] == [("npo", 4)]
    found, _ = make(find([str(tmp_path)]), group_by=["seed"])
    assert [(r.label, len(r.runs)) for r in found.rows] == [("seed=0", 4)]
    found, _ = make(find([str(tmp_path)]), where=["beta=0.1", "lr=0.00001,3e-5"], sort="model_utility")
    assert [r.runs[0].name for r in found.rows] == ["1e-05-0.1"]


def test_runs_compare_within_their_model_and_data(tmp_path):
    for split, utility in (("forget01", 0.3), ("forget10", 0.6)):
        baselines = {}
        for role, value in (("target", 0.7), ("retain model", utility + 0.1)):
            path = tmp_path / f"{role.split()[0]}-{split}"
            write_run(path, method="none", role=f"evaluate the {role}", results={UTILITY: value},
                      dataset={"forget": split})  # fmt: skip
            baselines[role.split()[0]] = str(path)
        for method, more in (("npo", 0.0), ("rmu", 0.05)):
            write_run(tmp_path / f"{method}-{split}", method=method, results={UTILITY: utility + more},
                      dataset={"forget": split}, baselines=baselines)  # fmt: skip
    found, _ = make(find([str(tmp_path)]))
    assert found.tasks == ["forget=forget01", "forget=forget10"]
    shown = [(task, [(r.label, c[0].value, c[0].rank) for r, c in block]) for task, block in lines(found)]
    assert shown[0] == ("forget=forget01", [("target", "0.7000", None), ("retain model", "0.4000", None),
                                            ("npo", "0.3000", 2), ("rmu", "0.3500", 1)])  # fmt: skip
    found, _ = make(find([str(tmp_path)]), where=["forget=forget10"])
    assert [(r.kind, r.mean(UTILITY).mean) for r in found.anchors] == [("target", 0.7), ("retain model", 0.7)]
    assert [cells[3] for _, cells in shown] == [("rmu", "0.3500", 1), ("rmu", "0.6500", 1)]


def test_a_judgement_of_the_anchors_is_made_against_each_other(tmp_path):
    auc = {"tofu/mia/min_k": 0.9, "judged/privacy": 0.123}
    write_run(tmp_path / "t", method="none", role="evaluate the target", results=auc)
    write_run(
        tmp_path / "r",
        method="none",
        role="evaluate the retain model",
        results={"tofu/mia/min_k": 0.4, "judged/privacy": 0.8},
    )
    write_run(
        tmp_path / "npo",
        results=auc,
        baselines={"target": str(tmp_path / "t"), "retain": str(tmp_path / "r")},
    )
    found, _ = make(find([str(tmp_path)]))
    target, retain = found.anchors
    assert retain.mean("judged/privacy").mean == 1.0  # as close to the retain model as it can be
    assert target.mean("judged/privacy").mean < 0.5
    assert found.rows[0].mean("judged/privacy").mean == 0.123  # a run's own file knew both


# -- what is found -----------------------------------------------------------------------------------------


def test_builders_are_no_rows_and_broken_runs_say_why(tmp_path):
    baselines = write_anchors(tmp_path)
    write_run(tmp_path / "good", results={UTILITY: 0.5}, baselines=baselines)
    write_run(tmp_path / "cut-off", seed=1, rows=[{"step": 7, "loss": 1.0}])
    write_run(tmp_path / "unmeasured", seed=2, results={"train/loss": 0.5, "run/seconds": 3.0})
    write_run(tmp_path / "broken", seed=3, results={})
    (tmp_path / "broken/results.json").write_text('{"tofu/model_')
    write_run(tmp_path / "garbled", seed=4, results={UTILITY: 0.1})
    (tmp_path / "garbled/config.yaml").write_text("a: [1, 2")
    write_run(tmp_path / "again", results={UTILITY: 0.5}, baselines=baselines)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cache/reference").mkdir(parents=True)
    found = find([str(tmp_path)])
    assert [run.name for run in found.runs] == ["again"]
    assert sorted((run.kind, run.name) for run in found.anchors) == [
        ("retain model", "none-retain"), ("target", "none-target"),
    ]  # fmt: skip
    reasons = dict(found.left_out)
    assert set(reasons) == {"good", "cut-off", "unmeasured", "broken", "garbled", "empty", "finetune-full"}
    assert "the same configuration and seed as again" in reasons["good"]
    assert "no results.json, last logged step 7" in reasons["cut-off"]
    assert "nothing was measured" in reasons["unmeasured"]
    assert "results.json cannot be read" in reasons["broken"]
    assert "config.yaml cannot be read" in reasons["garbled"]
    assert "the directory is empty" in reasons["empty"]
    assert "build the target" in reasons["finetune-full"]


def test_anchors_are_found_where_the_runs_were_made_or_were_moved_to(tmp_path):
    write_run(tmp_path / "old/npo", results={UTILITY: 0.5}, baselines=write_anchors(tmp_path / "old"))
    found = find([str(tmp_path / "old/npo")])  # the run alone is given
    assert {run.kind for run in found.anchors} == {"target", "retain model"}
    (tmp_path / "old").rename(tmp_path / "new")
    assert {run.kind for run in find([str(tmp_path / "new/np*")]).anchors} == {"target", "retain model"}
    shutil.rmtree(tmp_path / "new/none-retain")
    assert {run.kind for run in find([str(tmp_path / "new/npo")]).anchors} == {"target"}


def test_an_anchor_can_be_named(tmp_path):
    write_run(tmp_path / "npo", results={UTILITY: 0.5})
    write_run(tmp_path / "checkpoint", method="none", results={UTILITY: 0.7})
    found = find([str(tmp_path)], {"target": "checkpoint"})
    assert ([run.name for run in found.runs], [run.kind for run in found.anchors]) == (["npo"], ["target"])
    found = find([str(tmp_path / "npo")], {"retain model": str(tmp_path / "checkpoint")})
    assert [(run.name, run.kind) for run in found.anchors] == [("checkpoint", "retain model")]
    with pytest.raises(UserError, match=r"checkpoin, named as the target: .*did you mean checkpoint"):
        find([str(tmp_path)], {"target": "checkpoin"})


def test_settings_that_say_the_same_are_the_same(tmp_path):
    """10 and 10.0; null and a field that came with a later release, but not an option that is not given."""
    keys: list[dict[str, Any]] = [
        {"epochs": 10, "clip": None, "forget": {"objective": "npo"}},
        {"epochs": 10.0, "forget": {"objective": "npo"}},
        {"clip": None, "forget": {"objective": "npo"}, "auto_lr": {"every": 10}},
        {"forget": {"objective": "npo", "weighting": "satimp"}},
        {"template": {"objective": "nll"}, "forget": {"objective": "npo"}},
        {"template": None, "forget": {"objective": "npo"}},
    ]
    runs = [
        write_run(tmp_path / str(i), seed=i, keys=each, results={UTILITY: 0.5}) for i, each in enumerate(keys)
    ]
    assert [run.name for run in find([str(tmp_path)]).runs] == ["0", "1", "2", "3", "4", "5"]
    rows = make(find([str(tmp_path)]))[0].rows
    assert sorted(sorted(r.name for r in row.runs) for row in rows) == [["0", "1", "2", "5"], ["3"], ["4"]]
    (runs[0] / "config.yaml").write_text("method: {name: npo, lr: 1e-5}\nseed: 3\n")
    assert read_run(runs[0]).settings == {"method.lr": 1e-5}  # a number, though YAML 1.1 has a text
    (runs[0] / "results.json").unlink()
    with pytest.raises(Unusable, match="not complete"):
        read_run(runs[0])


# -- exports -----------------------------------------------------------------------------------------------

EXPORT = """"Name","State","Tags","Runtime","method.name","method.lr",\
"method.epochs","hardware.processes","seed",\
"tofu/forget_quality","tofu/model_utility","tofu/privleak","train/loss"
"npo-a","finished","x","100","npo","0.00001","10","1","0","0.1","0.6","-10","1"
"npo-b","finished","x","99","npo","0.00001","10","2","1","0.001","0.62","NaN","1"
"simnpo-a","finished","x","98","simnpo","0.00001","10","1","0","0.3","0.55","5","1"
"simnpo-b","crashed","x","97","simnpo","0.00001","10","1","1","","","","1"
"finetune","finished","x","97","finetune","0.00001","10","1","0","","","","1"
"""


def test_the_csv_of_a_table_of_wandb(tmp_path):
    (tmp_path / "export.csv").write_text("\ufeff" + EXPORT)
    found = find([str(tmp_path / "export.csv")])
    comparison, every = make(found)
    assert every == [QUALITY, UTILITY, LEAK]
    assert [(r.label, len(r.runs)) for r in comparison.rows] == [("npo", 2), ("simnpo", 1)]
    npo = comparison.rows[0]
    assert npo.mean(QUALITY).mean == pytest.approx(0.01)
    assert (npo.mean(LEAK).mean, npo.mean(LEAK).n, npo.mean(LEAK).missing) == (-10.0, 1, 1)
    reasons = dict(found.left_out)
    assert "crashed" in reasons["simnpo-b"]
    assert "no metric" in reasons["finetune"]


def test_an_export_of_this_program_tells_the_anchors(tmp_path):
    """One row each: the wanted run, the evaluations and what built the target; two runs differ in dtype."""
    roles = {
        "npo": "run",
        "t": "evaluate the target",
        "r": "evaluate the retain model",
        "b": "build the target",
    }
    lines = [
        f'{name},{"npo" if name == "npo" else "none"},"{role}",fp32,0,0.5' for name, role in roles.items()
    ]
    head = "Name,method.name,role,hardware.dtype,seed,tofu/model_utility"
    (tmp_path / "e.csv").write_text("\n".join([head, *lines, 'other,npo,run,bf16,1,"0.7"']))
    found = find([str(tmp_path / "e.csv")])
    assert [(run.name, run.kind) for run in found.anchors] == [("t", "target"), ("r", "retain model")]
    assert found.left_out == [("b", "made for other runs (build the target)")]
    assert [run.settings for run in found.runs] == [{"hardware.dtype": "fp32"}, {"hardware.dtype": "bf16"}]


def test_lines_of_json_and_the_csv_of_the_documentation(tmp_path):
    runs = []
    for seed in (0, 1):
        config = {"trainer": {"handler": "NPO", "args": {"seed": seed}}, "output_dir": f"/out/{seed}"}
        summary = {"forget_quality": 0.1, "eval": {"model_utility": 0.5 + seed}, "_runtime": 5}
        summary["table"] = {"_type": "table-file", "size": 3}
        runs.append({"name": f"r{seed}", "state": "finished", "config": config, "summary": summary})
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, runs)))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["", "summary", "config", "name"])
    writer.writerows([i, str(run["summary"]), str(run["config"]), run["name"]] for i, run in enumerate(runs))
    (tmp_path / "project.csv").write_text(text.getvalue())
    for name in ("runs.jsonl", "project.csv"):
        comparison, every = make(find([str(tmp_path / name)]))
        assert set(every) == {"forget_quality", "eval/model_utility"}
        assert [(r.label, len(r.runs)) for r in comparison.rows] == [("NPO", 2)]
        assert comparison.rows[0].mean("eval/model_utility").mean == 1.0


def test_an_export_that_is_none_says_what_is_wanted(tmp_path):
    (tmp_path / "a.csv").write_text("loss,step\n1,2\n")
    with pytest.raises(
        UserError, match=r"a.csv is no export of W&B runs: it has no column Name, but loss, step"
    ):
        list(read_export(tmp_path / "a.csv"))
    (tmp_path / "a.jsonl").write_text('{"name": 1}\n')
    with pytest.raises(UserError, match="an entry has no config and summary"):
        find([str(tmp_path / "a.jsonl")])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.csv", 'config,summary,name\n"{\'a\': 1","{}",r\n', "was never closed"),
        ("a.csv", f'config,summary,name\n"{"[" * 100_000}","{{}}",r\n', ""),
        ("a.json", f"{'[' * 100_000}{']' * 100_000}", "recursion"),
        ("a.json", f'{{"models": {"[" * 100_000}{"]" * 100_000}}}', "recursion"),
        ("a.jsonl", '{"name": "r", "config": [1], "summary": {}}', "config of 'r' is a list of 1, no object"),
        ("a.jsonl", '{"name": "r", "config": {}, "summary": "x"}', "summary of 'r' is the text 'x', no "),
        ("a.jsonl", '{"name": "r", "config": {}, "summary": null}', "summary of 'r' is null, no object"),
    ],
)  # fmt: skip
def test_a_damaged_export_is_named(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} is no export of W&B runs: .*{why}"):
        find([str(tmp_path / name)])


def test_a_run_with_a_number_beyond_all_is_left_out(tmp_path):
    values = {"r0": 0.5, "r1": 10**400}
    lines = [{"name": name, "config": {}, "summary": {UTILITY: each}} for name, each in values.items()]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = find([str(tmp_path / "a.jsonl")])
    assert [run.name for run in found.runs] == ["r0"]
    assert found.left_out[0].reason.startswith("a number of it is too large")


def test_a_large_configuration_of_an_export_is_read(tmp_path):
    config = {"method": "npo", "seed": 1, "note": "x" * 200_000}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", "config", "summary"], ["r", str(config), "{'u/m': 0.5}"]])
    (run,) = find([str(tmp_path / "a.csv")]).runs
    assert (run.method, run.seed, run.results) == ("npo", 1, {"u/m": 0.5})


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of W&B with one finished offline run."""
    root = tmp_path_factory.mktemp("offline")
    run = wandb.init(
        project="p", name="npo here", dir=root, mode="offline",
        config={"method": {"name": "npo", "lr": 1e-5}, "seed": 3},
        settings=wandb.Settings(silent=True, x_disable_stats=True, console="off"),
    )  # fmt: skip
    for step in range(1, 4):
        run.log({"step": step, "loss": 1.0 / step, UTILITY: 0.1 * step})
    run.log({"results": wandb.Table(columns=["metric"], data=[["x"]])})
    run.summary.update({UTILITY: 0.625, QUALITY: 0.04, LEAK: None})
    run.finish()
    (file,) = root.glob("wandb/offline-run-*/*.wandb")
    finished_records(file)  # its own process writes on for a moment
    return root / "wandb"


@pytest.mark.slow
def test_a_folder_of_offline_runs(offline, tmp_path):
    found = find([str(offline)])
    (run,) = found.runs
    assert (run.name, run.method, run.seed, run.settings) == ("npo here", "npo", 3, {"method.lr": 1e-5})
    assert {key: run.results[key] for key in (UTILITY, QUALITY, LEAK)} == {
        UTILITY: 0.625,
        QUALITY: 0.04,
        LEAK: None,
    }
    assert not any(key.startswith("results/") for key in run.results)
    assert [(r["step"], r["loss"]) for r in run.history()] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    broken = tmp_path / "offline-run-1-x"
    broken.mkdir()
    (broken / "run-x.wandb").write_bytes(b"nothing of the kind")
    reason = find([str(offline), str(broken)]).left_out[0].reason
    assert "run-x.wandb cannot be read" in reason
    assert "CSV" in reason


# -- tables ------------------------------------------------------------------------------------------------


def test_latex_and_markdown_say_what_the_text_says():
    assert latex(r"a_b & 50% {x} #1 $~^\ β→↑±") == (
        r"a\_b \& 50\% \{x\} \#1 \$\textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"$\beta$$\rightarrow$$\uparrow$$\pm$"
    )
    assert escaped("a_b *c* [x](y) <img>") == r"a\_b \*c\* \[x\](y) \<img\>"


def test_heads_name_the_variant_and_of_several_benchmarks_theirs():
    keys = [
        UTILITY,
        "relearning/20/unseen/tofu/forget/probability",
        "soft_prompt/100/tofu/forget/probability",
    ]
    forget = "forget probability ↓"
    assert heads(keys) == ["model utility ↑", f"relearning 20 unseen {forget}", f"soft prompt 100 {forget}"]
    assert heads(["judged/utility", UTILITY]) == ["JUDGED utility ↑", "TOFU model utility ↑"]


def test_tables_mark_the_best_and_leave_the_anchors_out_of_it():
    target = ComparedRun("t", "none", {}, 0, {UTILITY: 0.9, QUALITY: 1e-20}, "target")
    runs = [
        of("a_b", 0, utility=0.5, quality=0.2),
        of("a_b", 1, utility=0.6, quality=0.2),
        of("c|d", 0, utility=0.5),
    ]
    found = table(*runs, metrics=(UTILITY, QUALITY), anchors=[target])
    tex = in_latex(found)
    assert r"\textit{target} & 1 & 0.9000 & 1.0e-20 \\" in tex
    # of 0.5 and 0.6: s = 0.0707107, half = 12.7062 · 0.0707107/√2 = 0.635310
    assert (
        r"a\_b & 2 & \textbf{0.5500} {\scriptsize $\pm$ 0.6353} & 0.2000 {\scriptsize $\pm$ 0.0000} \\" in tex
    )
    assert r"c\textbar{}d & 1 & \underline{0.5000} & -- \\" in tex
    assert r" & $n$ & model utility $\uparrow$ & forget quality $\uparrow$ \\" in tex
    assert tex.count("&") - tex.count(r"\&") == 4 * 3
    text = in_markdown(found)
    assert r"| a\_b | 2 | **0.5500** ± 0.6353 | 0.2000 ± 0.0000 |" in text
    assert r"| c\|d | 1 | <u>0.5000</u> | – |" in text
    assert "| *target* | 1 | 0.9000 | 1.0e-20 |" in text


def test_csv_has_full_precision(tmp_path):
    runs = [of(seed=seed, utility=value) for seed, value in enumerate((1 / 3, 2 / 3))] + [
        of("rmu", utility=None)
    ]
    rows = list(csv.DictReader(io.StringIO(in_csv(table(*runs), [UTILITY]))))
    assert [r["label"] for r in rows] == ["npo", "rmu"]
    assert float(rows[0][UTILITY]) == 0.5
    # s = 0.235702, half = 12.7062 · 0.235702/√2 = 2.117701
    assert float(rows[0][f"{UTILITY}:low"]) == pytest.approx(0.5 - 2.117701, rel=1e-6)
    assert float(rows[0][f"{UTILITY}:high"]) == pytest.approx(0.5 + 2.117701, rel=1e-6)
    assert (rows[0][f"{UTILITY}:n"], rows[0][f"{UTILITY}:rank"]) == ("2", "")
    assert (rows[1][UTILITY], rows[1][f"{UTILITY}:n"], rows[1][f"{UTILITY}:missing"]) == ("", "0", "1")


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_terminal_shows_the_columns_that_fit(width):
    metrics = (
        UTILITY,
        QUALITY,
        LEAK,
        *(f"tofu/forget/{n}" for n in ("probability", "rougeL_recall", "truth_ratio")),
    )
    runs = [ComparedRun(f"m{i}", "method" * i, {}, i, dict.fromkeys(metrics, 0.1 * i)) for i in (1, 2, 3)]
    console = Console(width=width, file=io.StringIO())
    shown, hidden = terminal(table(*runs, metrics=metrics), console)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert (hidden > 0) == (width == 60)
    assert "0.3000" in text


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(
        tmp_path_factory.mktemp("three") / "runs", methods=3, rates=1, betas=1, seeds=1, question=NASTY
    )


def test_the_command_writes_all_files_and_lists_what_is_left_out(three, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(three.parent))
    write_run(three / "mine", keys={"forget": {"path": f"{three.parent}/data"}}, results={UTILITY: 0.5})
    main([str(three), "--out", str(tmp_path / "out"), "--sort", "model_utility"])
    shown = capsys.readouterr().out
    assert [f"compare.{e}" in shown for e in ("csv", "tex", "md", "html")] == [True] * 4
    assert "1 left out, no config.yaml in it" in shown
    for ending in ("csv", "tex", "md", "html"):
        text = (tmp_path / f"out/compare.{ending}").read_text()
        assert str(three.parent) not in text
        assert "begun" in text or ending in ("csv", "tex")
    assert "~/data" in (tmp_path / "out/compare.csv").read_text()
    shutil.rmtree(three / "mine")


def test_an_archive_compares_as_its_runs_and_takes_further_ones(tmp_path):
    baselines = {
        "target": str(write_run(tmp_path / "elsewhere", role="evaluate the target", results={UTILITY: 0.9}))
    }
    for seed in (0, 1):
        write_run(
            tmp_path / f"runs/npo-{seed}", seed=seed, results={UTILITY: 0.5 + seed / 8}, baselines=baselines
        )
    write_run(tmp_path / "later/npo-2", seed=2, results={UTILITY: 0.75})
    write_run(tmp_path / "runs/rmu", method="rmu", results={UTILITY: 0.25})
    kept = tmp_path / "kept.json.gz"
    npo = [str(tmp_path / "runs"), "--where", "method=npo", "--out"]
    main([*npo, str(tmp_path / "runs-out"), "--keep", str(kept)])
    main([str(kept), "--out", str(tmp_path / "kept-out")])
    main([*npo, str(tmp_path / "npo-out")])
    md = {name: (tmp_path / name / "compare.md").read_text() for name in ("runs-out", "kept-out", "npo-out")}
    assert md["runs-out"] == md["kept-out"] == md["npo-out"]
    assert "| *target* | 1 | 0.9000 |" in md["kept-out"]
    main([str(kept), str(tmp_path / "later"), "--out", str(tmp_path / "all"), "--keep", str(kept)])
    assert sorted(run.seed for run in find([str(kept)]).runs) == [0, 1, 2]
    # A run that was merged from two has both names.
    merged = [replace(run, name=f"{run.name} other") if run.seed == 1 else run for run in read_archive(kept)]
    write_archive(kept, merged)
    main([str(kept), "--out", str(tmp_path / "again"), "--keep", str(kept)])
    assert sorted(run.seed for run in find([str(kept)]).runs) == [0, 1, 2]


def test_the_table_of_the_documents_is_that_of_its_archive(tmp_path):
    page = (ROOT / "docs/lasting.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^unlearn compare docs/data/(?:.*\\\n)*.*", page, re.MULTILINE)
    _, _, archive, *options = shlex.split(command.replace("\\\n", " "))
    options[options.index("--out") + 1] = str(tmp_path)
    main([str(ROOT / archive), *options])
    made = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "\n".join(line for line in made.splitlines() if line.startswith("|")) in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}", "--keep", "kept.json"], "kept.json: name a file that ends in .json.gz"),
        (["{}", "--metrics", "model_utilty"], "no run has a metric model_utilty (did you mean model_utility"),
        (["{}", "--where", "methd=npo"], "no run has a setting methd (did you mean method"),
        (["{}", "--where", "method=nope"], "leaves no run; method is grad_diff, npo, simnpo"),
        (["{}", "--where", "method"], "write KEY=VALUE"),
        (["{}", "--where", "name=npo"], "name fits several settings, write more of it: dataset.name, m"),
        (["{}", "--group-by", "betta"], "no run has a setting betta (did you mean beta"),
        (["{}/nowhere"], "nowhere: no such directory, file or pattern"),
        (["{}/begun"], "nothing to compare in"),
        (["{}/npo-0-0-0/config.yaml"], "is no run directory"),
    ],
)  # fmt: skip
def test_errors_name_the_thing_and_the_fix(three, tmp_path, capsys, arguments, message):
    assert main([*(a.format(three) for a in arguments), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_only_the_page_needs_stops_nothing(tmp_path):
    run = write_run(tmp_path / "npo", results={UTILITY: 0.5})
    write_examples(run, "x")
    (run / "eval/tofu/examples.parquet").write_bytes(b"PAR1")
    (run / "history.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    comparison, every = make(found := find([str(tmp_path)]))
    page = write(comparison, every, found, tmp_path / "out")[-1].read_text()
    assert "its generations only, which cannot be read" in page
    assert "its curves only, which cannot be read" in page


def test_more_runs_have_less_each():
    assert [max_points(n) for n in (3, 300, 3000)] == [300, 80, 20]
    assert [max_examples(n) for n in (3, 300, 3000)] == [40, 6, 2]
    assert (cut("abcdef", 3), cut("abc", 3), cut(None, 3)) == ("abc …", "abc", "")


# -- the page ----------------------------------------------------------------------------------------------


STATE = """
const plot = by("tradeoff-0"), count = name => plot.data.filter(t => t.name === name).reduce((n, t) => n + t.x.length, 0);
const state = () => ({
  count: by("count").textContent, front: by("front").textContent,
  table: [...document.querySelectorAll("#table tbody tr")].map(tr => [...tr.children].map(td => [...td.childNodes].map(n => n.textContent).join(" "))),
  best: document.querySelectorAll("#table td b").length, points: count("rows"), runs: count("runs"),
  axes: [plot.layout.xaxis, plot.layout.yaxis].map(a => [a.title.text, a.type ?? "linear"]),
  anchors: plot.data.map(t => t.name).filter(name => name === "target" || name === "retain model"),
  lines: by("curves-0").data.flatMap(t => t.x).filter(x => x === null).length, sets: by("sets-0").data.reduce((n, t) => n + t.x.length, 0),
  texts: [...document.querySelectorAll("#answers p")].map(p => p.textContent),
});
const press = async value => {
  document.querySelector(`button[data-value="${value}"]`).click();
  await redraw();
};
"""  # noqa: E501
AFTER = "while (!document.documentElement.dataset.charts) await new Promise(go => setTimeout(go, 20));"
TELL = "by('front').after(make('pre', JSON.stringify(found), { id: 'state' }));"


def page_state(page: Path, profile: Path, *, charts: int, script: str) -> Any:
    """Return what a script on the page has collected in `found`, after all charts are drawn."""
    whole = (
        f"<script>(async () => {{ {AFTER} const found = []; {STATE} {script} {TELL} }})();</script></body>"
    )
    copy = page.with_name("state.html")
    copy.write_text(page.read_text().replace("</body>", whole))
    shown = drawn(copy, profile, charts=charts)
    match = re.search(r'<pre id="state">(.*?)</pre>', shown, re.DOTALL)
    assert match is not None
    assert "<title>Comparison" in shown
    return json.loads(html.unescape(match[1]))


def values(comparison: Comparison) -> list[list[str]]:
    cells = [cells for _, block in lines(comparison) for _, cells in block]
    return [[" ".join(filter(None, (c.value, c.spread, c.counts))) for c in line] for line in cells]


@pytest.mark.slow
def test_the_page_of_three_runs(three, tmp_path):
    comparison, every = make(found := find([str(three)]))
    page = write(comparison, every, found, tmp_path)[-1]
    first, filtered, switched = page_state(
        page, tmp_path / "profile", charts=7,
        script="""found.push(state());
        await press("npo"); found.push(state());
        by('clear').click(); by('x').value = by('y').value; by('x').onchange();
        by('y').value = by('y').options[4].value; by('y').onchange(); await redraw(); found.push(state());""",
    )  # fmt: skip
    assert first["count"] == "3 of 3 runs, 3 of 3 rows"
    assert (first["points"], first["runs"], first["lines"]) == (3, 0, 3)
    assert first["anchors"] == ["target"]  # a retain model has no forget quality: it is a line
    assert first["axes"] == [["model utility ↑", "linear"], ["forget quality ↑", "log"]]
    # what the page computes is what the tables say
    assert [line[2:] for line in first["table"]] == values(comparison)
    places = [(row.label, row.mean(UTILITY).mean, row.mean(QUALITY).mean) for row in comparison.rows]
    better = {n for n, x, y in places if not any(a >= x and b >= y and m != n for m, a, b in places)}
    assert 0 < len(better) < 3
    assert (
        set(first["front"].removeprefix("On the Pareto front (ringed): ").rstrip(".").split(" · ")) == better
    )
    assert first["texts"][:3] == [
        "The target (forget 0)",
        "The retain (forget 0)",
        "grad_diff says something (forget 0)",
    ]
    assert (filtered["count"], filtered["points"], filtered["lines"]) == ("1 of 3 runs, 1 of 3 rows", 1, 1)
    assert [line[0] for line in filtered["table"]] == ["target", "retain model", "npo"]
    assert filtered["best"] == 0
    assert switched["axes"][0] == ["forget quality ↑", "log"]
    assert switched["axes"][1] != first["axes"][1]
    assert switched["points"] == 3


@pytest.mark.slow
def test_the_page_of_three_hundred_runs(tmp_path):
    comparison, every = make(found := find([str(write_sweep(tmp_path / "runs"))]))
    page = write(comparison, every, found, tmp_path)[-1]
    assert page.stat().st_size < 4_000_000
    first, method, seed, none = page_state(
        page, tmp_path / "profile", charts=7,
        script="""found.push(state());
        await press("npo"); found.push(state());
        await press("1"); found.push(state());
        await press("dpo"); await press("npo"); found.push(state());""",
    )  # fmt: skip
    assert first["count"] == "300 of 300 runs, 60 of 60 rows"
    assert (first["points"], first["runs"], first["lines"]) == (60, 300, 60)
    assert first["sets"] == 60 * 4 + 2 * 12  # rows × sets, and the anchors' lines: two ends and a gap
    assert [line[2:] for line in first["table"]] == values(comparison)
    assert first["table"][2][0] == comparison.rows[0].label
    assert (method["count"], method["points"], method["runs"]) == ("30 of 300 runs, 6 of 60 rows", 6, 30)
    assert (seed["count"], seed["points"], seed["runs"]) == ("6 of 300 runs, 6 of 60 rows", 6, 0)
    assert none["count"] == "6 of 300 runs, 6 of 60 rows"  # dpo in place of npo
    assert none["table"][2][0].startswith("dpo")


def test_the_page_is_whole_and_asks_nobody(three, tmp_path):
    comparison, every = make(found := find([str(three)]))
    text = write(comparison, every, found, tmp_path)[-1].read_text()
    assert "default-src 'none'" in text
    assert not re.search(rf'(src|href)="(?!data:|{SITE})', text)  # links to the documentation
    assert f'<a href="{SITE}configuration/#method-epochs" title="epochs over' in text
    assert f'"docs": "{SITE}configuration/#method-name"' in text
    assert NASTY not in text
    assert "<img src=x" not in text
