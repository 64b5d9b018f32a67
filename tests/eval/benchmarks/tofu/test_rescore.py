"""Logs of two rows, written here: what is computed from them, what is refused, and the command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from eval.benchmarks.tofu.published_logs import PublishedLogError, read_log
from eval.benchmarks.tofu.rescore import check_rouge, main, rescore
from tests.paths import ROOT

FORGET = "eval_log_forget.json"


def by_row(*values):
    return {str(i): value for i, value in enumerate(values)}


def tofu_part(paraphrased=(1.0, 1.0), perturbed=((2.0, 3.0, 4.0), (1.0, 1.0, 1.0))):
    return {
        "avg_gt_loss": by_row(0.0, math.log(2)),
        "avg_paraphrased_loss": by_row(*paraphrased),
        "average_perturb_loss": by_row(*map(list, perturbed)),
        "rougeL_recall": by_row(1.0, 0.5),
        "generated_text": by_row(["q", "Answer: yes and no", "yes"], ["q", "Answer: no", "yes yes"]),
    }


def peer_log(*, answer, paraphrased, perturbed, forget=(0.0, 1.0), holdout=(0.5, 2.0), agg=0.75):
    def losses(values):
        return {"agg_value": 0.0, "value_by_index": by_row(*({"prob": 0.0, "avg_loss": v} for v in values))}

    def scores(values):
        return {"agg_value": 0.0, "value_by_index": by_row(*({"score": v} for v in values))}

    return {
        "forget_Q_A_Prob": losses(answer),
        "forget_Q_A_PARA_Prob": losses(paraphrased),
        "forget_Q_A_PERT_Prob": losses(map(list, perturbed)),
        "mia_min_k": {"forget": scores(forget), "holdout": scores(holdout), "auc": agg, "agg_value": agg},
        "forget_quality": {"agg_value": None},
    }


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def tofu(tmp_path):
    return write(tmp_path / "eval_log_aggregated.json", {FORGET: tofu_part()})


def test_metrics_of_two_rows(tofu):
    # Row 0: R = e^{−3}/e^{−1} geometric, (e^{−2} + e^{−3} + e^{−4})/3 ÷ e^{−1} = 0.184334 arithmetic.
    # Row 1: R = 1.
    found = rescore(read_log(tofu))
    assert found["tofu/forget/truth_ratio"] == pytest.approx((0.135335 + 1) / 2, abs=1e-6)
    assert found["tofu/forget/probability"] == pytest.approx((1 + 0.5) / 2)
    assert found["tofu/forget/rougeL_recall"] == 0.75
    assert found["tofu/forget/paraphrased_probability"] == pytest.approx(math.exp(-1))
    # The truth's share 1/(1 + R): 1/1.135335 and 1/2.
    assert found["tofu/forget/truth_probability"] == pytest.approx((0.880797 + 0.5) / 2, abs=1e-6)
    assert "tofu/model_utility" not in found  # three of its four sets are absent
    arithmetic = rescore(read_log(tofu), form="arithmetic")
    assert arithmetic["tofu/forget/truth_ratio"] == pytest.approx((0.184334 + 1) / 2, abs=1e-6)


def test_rows_come_by_their_index_not_as_they_stand(tmp_path):
    part = tofu_part()
    part["avg_gt_loss"] = dict(reversed(by_row(*(float(i) for i in range(11))).items()))
    for name in part.keys() - {"avg_gt_loss"}:
        part[name] = by_row(*[part[name]["0"]] * 11)
    log = read_log(write(tmp_path / "log.json", {FORGET: part}))
    assert np.asarray(log.nll("forget")).tolist() == list(range(11))  # 10 after 9, not after 1


def test_nulls_are_left_out_and_counted(tmp_path):
    content = peer_log(
        answer=(0.0, None, math.log(4)), paraphrased=(1.0, 1.0, 1.0), perturbed=((1.0,), (1.0,), (None,)),
        forget=(0.0, None, 1.0), holdout=(0.5, 2.0, None), agg=None,
    )  # fmt: skip
    content["forget_Q_A_ROUGE"] = {"value_by_index": by_row(
        {"rouge1_recall": 0.5, "rougeL_recall": 1.0, "ground_truth": "yes", "generation": "yes"},
        {"rouge1_recall": None, "rougeL_recall": None, "ground_truth": "yes", "generation": None},
        None,
    )}  # fmt: skip
    content["extraction_strength"] = {"value_by_index": by_row({"score": 0.25}, {"score": None}, None)}
    content["exact_memorization"] = {"agg_value": 0.5}
    log = read_log(write(tmp_path / "TOFU_EVAL.json", content))
    found = rescore(log, log, epsilon=0)
    assert found["tofu/forget/probability"] == pytest.approx((1 + 0.25) / 2)
    assert found["tofu/forget/truth_ratio"] == found["tofu/forget/rougeL_recall"] == 1
    assert found["tofu/forget/extraction_strength"] == 0.25
    assert {key: n for key, n in found.items() if key.endswith("missing")} == {
        "tofu/forget/probability/missing": 1, "tofu/forget/truth_ratio/missing": 1,
        "tofu/forget/truth_probability/missing": 1, "tofu/forget/extraction_strength/missing": 2,
        "tofu/forget/rougeL_recall/missing": 2, "tofu/forget/rouge1_recall/missing": 2,
    }  # fmt: skip
    assert (found["tofu/forget_quality_n"], found["tofu/forget_quality_retain_n"]) == (2, 2)
    # Pairs forget < holdout: 0 < 0.5, 0 < 2, 1 < 2 of four.
    assert found["tofu/mia/min_k"] == 0.75
    assert "min_k" not in log.auc  # its aggregate is null
    assert log.stored == {
        "tofu/forget/probability": 0.0, "tofu/forget/paraphrased_probability": 0.0,
        "tofu/forget/exact_memorization": 0.5,
    }  # fmt: skip
    assert check_rouge(log) == {"forget/rouge1_recall": (0, 1), "forget/rougeL_recall": (1, 1)}


def test_epsilon_decides_where_answers_are_hardly_likely(tmp_path):
    # p = e^{−50} of the paraphrased and e^{−49} of the perturbed: R = e, min(R, 1/R) = e^{−1}. With 1e−10 in
    # the denominator R = e^{−49}/(e^{−50} + 1e−10) = 5.2e−12.
    content = peer_log(answer=(50.0,), paraphrased=(50.0,), perturbed=((49.0, 49.0),))
    log = read_log(write(tmp_path / "TOFU_EVAL.json", content))
    assert rescore(log, epsilon=0)["tofu/forget/truth_ratio"] == pytest.approx(math.exp(-1))
    theirs = math.exp(-49) / (math.exp(-50) + 1e-10)
    assert rescore(log)["tofu/forget/truth_ratio"] == pytest.approx(theirs, rel=1e-9)
    np.testing.assert_allclose(log.log_truth_ratio(), [1.0])
    p = math.exp(-50) / (math.exp(-50) + math.exp(-49) + 1e-10)
    assert rescore(log)["tofu/forget/truth_probability"] == pytest.approx(p, rel=1e-9)


def test_epsilon_counts_as_one_more_wrong_option(tmp_path):
    def losses(*values):
        return {"value_by_index": by_row(*({"avg_loss": v} for v in values))}

    content = {"ra_Q_A_Prob": losses(20.0), "ra_Q_A_PERT_Prob": losses([21.0, 22.0])}
    log = read_log(write(tmp_path / "TOFU_EVAL.json", content))
    p, wrong = math.exp(-20), math.exp(-21) + math.exp(-22)
    key = "tofu/real_authors/probability"
    assert rescore(log)[key] == pytest.approx(p / (p + wrong + 1e-10), rel=1e-12)
    assert rescore(log, epsilon=0)[key] == pytest.approx(p / (p + wrong), rel=1e-12)
    # The answer is its own paraphrase: R = e^{−21.5}/(e^{−20} + 1e−10), reported as 1 − R.
    ratio = math.exp(-21.5) / (p + 1e-10)
    assert rescore(log)["tofu/real_authors/truth_ratio"] == pytest.approx(1 - ratio, rel=1e-12)


def test_privleak_and_forget_quality_of_two_openunlearning_logs(tmp_path):
    rows = {"answer": (1.0, 2.0), "paraphrased": (1.0, 1.0), "perturbed": ((2.0,), (3.0,))}
    # Pairs forget < holdout: 0 < 0.5, 0 < 2, 1 < 2 of four, as stored: AUC 0.75.
    log = read_log(write(tmp_path / "a.json", peer_log(**rows)))
    retain = read_log(
        write(tmp_path / "b.json", peer_log(**rows | {"perturbed": ((0.5,), (0.25,))}, agg=0.5))
    )
    found = rescore(log, retain)
    assert found["tofu/mia/min_k"] == log.auc["min_k"] == 0.75
    assert found["tofu/privleak"] == pytest.approx(-50)  # s = 0.25, r = 0.5
    assert found["tofu/forget_quality_ks"] == 1  # all ratios of one lie below all of the other
    stored = {"tofu/forget/probability": 0.0, "tofu/forget/paraphrased_probability": 0.0}
    assert log.stored == stored | {"tofu/mia/min_k": 0.75}


def broken(**changes):
    part = tofu_part() | changes
    return {FORGET: {name: rows for name, rows in part.items() if rows is not None}}


REFUSED = {
    "not json": ("{", r"log\.json, line 1: not JSON"),
    "a list": ([1], r"neither an original TOFU log .* found a JSON list"),
    "no known key": ({"a": {}}, r"neither .* nor OpenUnlearning's .* found the keys a"),
    "a summary": (
        {"forget_Q_A_Prob": 0.5, "model_utility": 0.4},
        r"give the TOFU_EVAL\.json in the same folder",
    ),
    "a part without its name": (tofu_part(), r"call it one of eval_log_forget\.json, "),
    "a column": (broken(rougeL_recall=None), FORGET + r": has no 'rougeL_recall'; it has: avg_gt_loss, "),
    "no rows": (broken(avg_gt_loss={}), FORGET + r": avg_gt_loss: expected rows .* found none"),
    "a row": (broken(avg_gt_loss={"0": 1.0, "2": 1.0}), r"2 rows but its index runs to 2; .* missing is 1"),
    "fewer rows": (broken(avg_gt_loss={"0": 1.0}), FORGET + r": expected as many rows .* 1 of nll, 2 of "),
    "nan": (broken(avg_gt_loss=by_row(0.0, math.nan)), r"avg_gt_loss: row 1: expected a finite .* found NaN"),
    "infinite": (broken(avg_gt_loss=by_row(math.inf, 0.0)), r"row 0: expected a finite number, found inf"),
    "no number": (broken(average_perturb_loss=by_row([1.0], [True])), r"row 1: .* found true"),
    "no perturbed": (broken(average_perturb_loss=by_row([1.0], [])), r"row 1: .* found an empty list"),
    "no text": (broken(generated_text=by_row(["q", "a"], ["q", "a"])), r"row 0: .* found a list of 2"),
    "a field": (
        {"ra_Q_A_Prob": {"value_by_index": by_row({"prob": 1.0})}},
        r"ra_Q_A_Prob: row 0: .*'avg_loss'",
    ),
    "no index": (
        {"ra_Q_A_Prob": {"agg_value": 1.0}},
        r"ra_Q_A_Prob: has no 'value_by_index'; it has: agg_value",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_log_is_refused(tmp_path, case, capsys):
    content, message = REFUSED[case]
    path = write(tmp_path / "log.json", content)
    with pytest.raises(PublishedLogError, match=message) as refused:
        read_log(path)
    assert str(refused.value).startswith(str(path))
    assert main([str(path)]) == 2
    assert capsys.readouterr() == ("", f"{refused.value}\n")


def test_a_retain_log_without_truth_ratios_is_refused(tmp_path, tofu):
    other = write(tmp_path / "eval_log.json", tofu_part())
    with pytest.raises(
        PublishedLogError, match=r"eval_log\.json: the truth ratio of the forget set needs eval_"
    ):
        rescore(read_log(tofu), read_log(other))
    peer = write(
        tmp_path / "TOFU_EVAL.json", {"forget_Q_A_Prob": {"value_by_index": by_row({"avg_loss": 1})}}
    )
    with pytest.raises(PublishedLogError, match="needs forget_Q_A_PARA_Prob and forget_Q_A_PERT_Prob"):
        rescore(read_log(tofu), read_log(peer))


def test_table_and_json_hold_the_same(tofu, capsys):
    arguments = [str(tofu), "--retain", str(tofu), "--check"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"] == rescore(read_log(tofu), read_log(tofu))
    assert (report["origin"], report["truth_ratio"], report["epsilon"]) == ("tofu", "geometric", 0)
    # "yes" is found once in each text: recall 1/1 as stored; of "yes yes" in "Answer: no" 0, not 0.5.
    assert report["rouge"] == {"forget/rougeL_recall": {"equal": 1, "rows": 2}}
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert all(key in table for key in report["metrics"])
    assert "forget/rougeL_recall: 1 of 2 from the generations equal the stored" in table


def test_json_has_null_for_what_has_no_value(tmp_path, capsys):
    content = peer_log(answer=(1.0,), paraphrased=(1.0,), perturbed=((1.0,),), agg=1.0)
    path = str(write(tmp_path / "TOFU_EVAL.json", content))
    assert main([path, "--retain", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["tofu/privleak"] is None


@pytest.mark.parametrize("wrong", [["--truth-ratio", "both"], ["--epsilon", "x"], ["--epsilon", "2"], []])
def test_wrong_arguments_exit_with_2(tofu, wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tofu), *wrong] if wrong else [])
    assert "usage: unlearn rescore" in capsys.readouterr().err


def run(*arguments):
    command = [sys.executable, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_runs_and_refuses_without_a_traceback(tofu):
    done = run("-m", "launch.cli", "rescore", str(tofu))
    assert (done.returncode, done.stderr) == (0, "")
    assert "tofu/forget/truth_ratio" in done.stdout
    refused = run("-m", "launch.cli", "rescore", str(tofu.with_name("none.json")))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"{tofu.with_name('none.json')}: there is no such file\n"


@pytest.mark.slow
def test_it_needs_neither_torch_nor_transformers(tofu):
    code = (
        "import sys; from eval.benchmarks.tofu.rescore import main; main(sys.argv[1:]); "
        "sys.exit(str({'torch', 'transformers'} & set(sys.modules) or ''))"
    )
    done = run("-c", code, str(tofu), "--check")
    assert done.stderr.strip() == ""
