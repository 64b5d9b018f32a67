from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.benchmark import BenchmarkError, find
from eval.benchmarks.tofu import Options, requests, score
from eval.collection.ragged import Ragged
from eval.collection.records import (
    GenerationRecords,
    LikelihoodRecords,
    NormRecords,
    Records,
    RecordsError,
    write_records,
)
from eval.collection.requests import Generation, GradientNorm
from eval.evaluate import evaluate, score_directory
from tests.eval.eval_fixtures import encoder, examples, model
from unlearn.data.example import Example
from unlearn.errors import ConfigError
from unlearn.files import finite

# As a dataset has them: the benchmark knows the first two without `_eval`.
SETS = {
    "forget_eval": [
        replace(e, paraphrased_question=f"Please: {e.question}") for e in examples("forget", perturbed=5)
    ],
    "retain_eval": examples("retain", perturbed=5),
    "real_authors": examples("real_authors", paraphrased=False, perturbed=3),
    "world_facts": examples("world_facts", paraphrased=False, perturbed=3),
}
OWN = {name.removesuffix("_eval"): own for name, own in SETS.items()}
EXAMPLE = Example("forget/0", "the city of light", "q?", "the city", ("Oslo", "Bern", "Graz"), "which?")
CODE = encoder()


def write(directory, sets, nll, text, correct=(True, True), options=None):
    """Records in which an answer has a token of the given NLL and an equal end token; NaN: no token.

    `nll`: kind → by slot; a number's gradient norm is ten times the NLL of the answer.
    """
    for request in requests(sets, options or Options()):
        ids = [item.example for item in request.items]
        none = [None] * len(ids)
        if isinstance(request, Generation):
            generations = GenerationRecords(ids, np.zeros(len(ids), int), none, [text] * len(ids), none)
            write_records(directory, request, CODE, generations)
            continue
        slots = np.array([item.slot for item in request.items])
        if isinstance(request, GradientNorm):
            norms = [10 * nll["answer"][0]] * len(ids)
            write_records(directory, request, CODE, NormRecords(ids, slots, none, np.array(norms)))
            continue
        values = [nll[request.name.split("/")[1]][i.slot] for i in request.items]
        rows = Ragged.of([[] if math.isnan(value) else [-value] * 2 for value in values])
        tokens = dict.fromkeys(("logp", "mean", "variance"), rows)
        hits = np.array(correct * len(rows), bool)[: len(rows.values)]
        tokens["correct"] = Ragged(hits, rows.offsets)
        ended = rows.lengths > 0
        records = LikelihoodRecords(ids, slots, none, ended=ended, **tokens)
        write_records(directory, request, CODE, records)


def test_one_example_by_hand(tmp_path):
    nll = {"answer": [0.5], "rephrased": [9.0], "paraphrased": [1.0], "perturbed": [2.0, 3.0, 4.0]}
    sets = {
        "forget": [EXAMPLE],
        "world_facts": [Example("world_facts/0", "the city of light", "q?", None, ("x", "y", "z"))],
    }
    write(tmp_path, sets, nll, "light of the city", correct=(False, True))
    result = score(Records(tmp_path), None, sets, Options())
    assert result.metrics == pytest.approx(
        {
            "tofu/forget/probability": 0.606531,  # e^−.5
            "tofu/forget/rougeL_recall": 0.5,  # "the city" of 4 words
            "tofu/forget/rouge1_recall": 1.0,
            "tofu/forget/rouge1_f1": 1.0,
            "tofu/forget/rougeL_f1": 0.5,  # both have four words
            "tofu/forget/distinct_4": 1.0,  # so there is one 4-gram
            "tofu/forget/truth_ratio": 0.135335,  # R = e^(1 − 3) < 1
            "tofu/forget/paraphrased_probability": 0.367879,  # e^−1
            "tofu/forget/truth_probability": 0.880797,  # 1/(1 + e^−2)
            "tofu/forget/extraction_strength": 0,  # the one token is wrong, the end token does not count
            "tofu/forget/exact_memorization": 0,
            "tofu/forget/extraction_strength_paraphrased": 0,
            # .606531 / (.606531 + .135335 + .049787 + .018316)
            "tofu/world_facts/probability": 0.748832,
            "tofu/world_facts/rougeL_recall": 0.5,
            "tofu/world_facts/rouge1_recall": 1.0,
            "tofu/world_facts/rouge1_f1": 1.0,
            "tofu/world_facts/rougeL_f1": 0.5,
            "tofu/world_facts/truth_ratio": 1 - 0.082085,  # R = e^(.5 − 3)
        },
        abs=1e-6,
    )
    arithmetic = score(Records(tmp_path), None, sets, Options(truth_ratio="arithmetic"))
    assert arithmetic.metrics["tofu/forget/truth_ratio"] == pytest.approx(0.184334, abs=1e-6)
    assert arithmetic.metrics["tofu/forget/truth_probability"] == pytest.approx(0.844356, abs=1e-6)
    assert result.examples[0] == pytest.approx(
        {
            "set": "forget",
            "id": "forget/0",
            "question": "q?",
            "answer": "the city of light",
            "generation": "light of the city",
            "probability": 0.606531,
            "rougeL_recall": 0.5,
            "rouge1_recall": 1.0,
            "rouge1_f1": 1.0,
            "rougeL_f1": 0.5,
            "distinct_4": 1.0,
            "extraction_strength": 0,
            "exact_memorization": 0,
            "paraphrased_probability": 0.367879,
            "truth_probability": 0.880797,
            "extraction_strength_paraphrased": 0,
            "truth_ratio": 0.135335,
        },
        abs=1e-6,
    )


def test_memorization_only_reads_true_answers_alone(tmp_path):
    sets = OWN | {"holdout": examples("new")}
    asked = requests(sets, Options(memorization_only=True, gradients=False))
    assert [request.name for request in asked] == ["forget/answer", "retain/answer", "holdout/answer"]
    options = {"memorization_only": True, "gradients": False}
    gold, folder, sets = tmp_path / "gold", tmp_path / "run", SETS | {"holdout": examples("new")}
    evaluate(model(seed=1), CODE, "tofu", sets, gold, options=options)
    every = evaluate(model(), CODE, "tofu", sets, folder, options={"max_new_tokens": 4, "gradients": False})
    assert (folder / "tofu/words.json").is_file()
    only = evaluate(model(), CODE, "tofu", sets, folder, options=options, retain_directory=gold)
    assert not (folder / "tofu/words.json").exists()  # of an evaluation that had texts
    own = {key for key in only if "mia" not in key} - {"tofu/privleak"}
    assert own == {
        f"tofu/{name}/{metric}"
        for name in ("forget", "retain")
        for metric in ("probability", "extraction_strength", "exact_memorization")
    } | {"tofu/holdout/probability"}
    assert {key: only[key] for key in own} == {key: every[key] for key in own}
    assert only["tofu/mia/loss"] == every["tofu/mia/loss"]
    assert math.isfinite(only["tofu/privleak"])
    assert not (folder / "tofu/problems.json").exists()
    with pytest.raises(ConfigError, match="gibberish judges generated answers"):
        evaluate(
            model(), CODE, "tofu", SETS, tmp_path, options={"memorization_only": True, "gibberish": "any"}
        )


def test_what_cannot_be_measured_is_counted_and_left_out(tmp_path):
    whole, bare = EXAMPLE, Example("forget/1", "the city", "who?")
    nll = {"answer": [1], "rephrased": [1], "paraphrased": [1], "perturbed": [3, 3, 3]}
    write(tmp_path, {"forget": [whole, bare]}, nll, "x")
    metrics = score(Records(tmp_path), None, {"forget": [whole, bare]}, Options()).metrics
    assert metrics["tofu/forget/truth_ratio"] == pytest.approx(math.exp(-2))
    lacking = ("paraphrased_probability", "truth_probability", "extraction_strength_paraphrased")
    assert {key: value for key, value in metrics.items() if key.endswith("missing")} == {
        f"tofu/forget/{metric}/missing": 1 for metric in (*lacking, "truth_ratio")
    } | {"tofu/forget/distinct_4/missing": 2}  # one word has no 4-gram
    assert metrics["tofu/forget/extraction_strength_paraphrased"] == 1


def test_no_text_is_not_an_empty_one(tmp_path):
    nll = {"answer": [1], "rephrased": [1], "paraphrased": [1], "perturbed": [3, 3, 3]}
    for generated, value in (("", 0.0), (None, math.nan)):
        write(tmp_path / str(generated), {"forget": [EXAMPLE]}, nll, generated)
        result = score(Records(tmp_path / str(generated)), None, {"forget": [EXAMPLE]}, Options())
        for metric in ("rougeL_recall", "rouge1_recall", "rougeL_f1"):
            assert result.metrics[f"tofu/forget/{metric}"] == pytest.approx(value, nan_ok=True)
            assert (f"tofu/forget/{metric}/missing" in result.metrics) is (generated is None)
        assert result.examples[0]["generation"] == generated


def test_a_whole_evaluation_and_its_files(tmp_path):
    net = model()
    options = {"max_new_tokens": 8}
    evaluate(
        model(seed=1), CODE, "tofu", {"forget_eval": SETS["forget_eval"]}, tmp_path / "gold", options=options
    )
    metrics = evaluate(
        net, CODE, "tofu", SETS, tmp_path / "run", options=options, retain_directory=tmp_path / "gold"
    )
    wanted = {"model_utility"} | {
        f"forget_quality{part}" for part in ("", "_log10", "_ks", "_n", "_retain_n")
    }
    wanted |= {
        f"{name}/{metric}"
        for name in OWN
        for metric in (
            "probability",
            "rougeL_recall",
            "rougeL_f1",
            "rouge1_recall",
            "rouge1_f1",
            "truth_ratio",
        )
    }
    wanted |= {
        f"{name}/{metric}"
        for name in ("forget", "retain")
        for metric in (
            "extraction_strength", "exact_memorization", "paraphrased_probability", "truth_probability",
            "distinct_4",
        )
    }  # fmt: skip
    wanted |= {"forget/extraction_strength_paraphrased"}  # the retain set has no questions in other words
    # Some generations are short.
    reported = {key for key in metrics if not key.endswith("distinct_4/missing")}
    assert reported == {f"tofu/{key}" for key in wanted}
    files = tmp_path / "run" / "tofu"
    assert json.loads((files / "results.json").read_text()) == finite(metrics)
    rows = pq.ParquetFile(files / "examples.parquet").read().to_pylist()
    assert [row["id"] for row in rows] == [e.id for examples_ in SETS.values() for e in examples_]
    for metric in ("probability", "extraction_strength", "exact_memorization", "truth_probability"):
        mean = np.mean([row[metric] for row in rows if row["set"] == "retain"])
        assert metrics[f"tofu/retain/{metric}"] == pytest.approx(mean)

    before = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
    for name in before:
        (files / name).unlink()
    again = score_directory("tofu", OWN, tmp_path / "run", retain_directory=tmp_path / "gold")
    assert again == metrics
    assert {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()} == before


def test_absent_sets_leave_out_the_metrics_that_need_them(tmp_path):
    sets = {name: SETS[name][:2] for name in ("retain_eval", "real_authors")}
    metrics = evaluate(model(), CODE, "tofu", sets, tmp_path, options={"max_new_tokens": 2})
    assert {key.split("/")[1] for key in metrics} == {"retain", "real_authors"}


def test_without_generations_nothing_of_text_and_no_utility(tmp_path):
    sets = {name: own[:2] for name, own in SETS.items()}
    metrics = evaluate(model(), CODE, "tofu", sets, tmp_path, options={"generation": False})
    assert "tofu/retain/probability" in metrics
    assert not [key for key in metrics if "rouge" in key or "utility" in key]
    assert not list(tmp_path.rglob("generation.parquet"))


def test_a_set_without_perturbed_answers_has_no_truth_ratio_and_null_in_the_file(tmp_path):
    sets = {"forget_eval": examples("forget", paraphrased=False, perturbed=0)[:3]}
    metrics = evaluate(model(), CODE, "tofu", sets, tmp_path, options={"max_new_tokens": 2})
    assert math.isnan(metrics["tofu/forget/truth_ratio"])
    assert metrics["tofu/forget/truth_ratio/missing"] == 3
    assert not [key for key in metrics if "paraphrased" in key or "truth_probability" in key]
    assert json.loads((tmp_path / "tofu" / "results.json").read_text())["tofu/forget/truth_ratio"] is None


def test_an_empty_answer_is_a_problem_of_its_example_alone(tmp_path):
    whole = examples("forget")[:3]
    sets = {"forget_eval": [whole[0], replace(whole[1], answer=""), whole[2]]}
    metrics = evaluate(model(), CODE, "tofu", sets, tmp_path, options={"max_new_tokens": 2})
    rows = pq.ParquetFile(tmp_path / "tofu" / "examples.parquet").read().to_pylist()
    assert [math.isnan(row["probability"]) for row in rows] == [False, True, False]
    assert metrics["tofu/forget/probability"] == pytest.approx(
        (rows[0]["probability"] + rows[2]["probability"]) / 2
    )
    for metric in ("probability", "extraction_strength", "rougeL_recall"):
        assert metrics[f"tofu/forget/{metric}/missing"] == 1
    (problem,) = json.loads((tmp_path / "tofu" / "problems.json").read_text())["problems"]
    assert "forget/answer, example forget/1" in problem


def test_a_retain_model_evaluated_on_another_forget_set_is_refused(tmp_path):
    options = {"max_new_tokens": 2}
    sets = [{"forget_eval": SETS["forget_eval"][:count]} for count in (2, 3)]
    evaluate(model(), CODE, "tofu", sets[0], tmp_path / "gold", options=options)
    with pytest.raises(RecordsError, match="the retain model on the same forget set"):
        evaluate(
            model(),
            CODE,
            "tofu",
            sets[1],
            tmp_path / "run",
            options=options,
            retain_directory=tmp_path / "gold",
        )


def test_what_does_not_exist_is_refused_with_what_does():
    for name, message in {
        "tofoo": r"no such benchmark \(did you mean tofu",
        "records": r"no such benchmark \(known: .*tofu",
        "../tofu": "cannot be imported",
        "no.such": r"cannot be imported \(No module named 'no'",
        "eval.benchmark": "benchmark has no Options, SETS, METRICS",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find(name)
    with pytest.raises(BenchmarkError, match="scores no set 'forget_eval'"):
        requests({"forget_eval": []}, Options())
    with pytest.raises(BenchmarkError, match="the set forget has no examples"):
        requests({"forget": []}, Options())
    for wrong, message in (
        ({"max_tokens": 3}, r"no option max_tokens \(did you mean max_new_tokens"),
        ({"min_k": 0}, "min_k=0.0: the share"),
        ({"truth_ratio": "mean"}, "'geometric' or 'arithmetic'"),
        ({"max_new_tokens": 0}, "generation=false"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_directory("tofu", {}, Path("nowhere"), options=wrong)
    with pytest.raises(BenchmarkError, match="forget/0 has no question"):
        requests({"forget": [Example("forget/0", "a plain text")]}, Options())
