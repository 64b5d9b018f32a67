"""TOFU's membership attacks: scores and areas by hand, and the problem where nothing can be compared."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.benchmarks.tofu import Options, requests, score
from eval.benchmarks.tofu.published_logs import AttackScores, PublishedLog, PublishedSet
from eval.collection.ragged import Ragged
from eval.collection.records import LikelihoodRecords, NormRecords, Records, RecordsError, write_records
from eval.collection.requests import GradientNorm, Likelihood
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, examples, model
from unlearn.data.example import Example

CODE = encoder()
OPTIONS = Options(generation=False, min_k=0.5)
SETS = {
    "forget": [Example("a", "Oslo", "q a?"), Example("b", "Quito " * 20, "q b?")],
    "holdout": [Example("c", "Lagos", "q c?"), Example("d", "Split", "q d?")],
}
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")
# The last is the end token. Mean NLL 1, 3, 2, 6; Min-K of half of the two others, the lowest: 1, 5, 2, 8.
ROWS = {"a": [-1, 0, -2], "b": [-1, -5, -3], "c": [-2, -1, -3], "d": [-4, -8, -6]}
NORMS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
# Mean NLL and Min-K 2, 2, 1, 9.
RETAIN_ROWS = {"a": [-2, -2, -2], "b": [-2, -2, -2], "c": [-1, -1, -1], "d": [-9, -9, -9]}


def write(directory, rows, sets=SETS, options=OPTIONS, cut=()) -> Records:
    """Under the model's own distribution log p has mean −2 and variance 4 everywhere."""
    for request in requests(sets, options):
        ids = [item.example for item in request.items]
        slots, none = np.zeros(len(ids), int), [None] * len(ids)
        if isinstance(request, GradientNorm):
            norms = NormRecords(ids, slots, none, np.array([NORMS[i] for i in ids]))
            write_records(directory, request, CODE, norms)
            continue
        assert isinstance(request, Likelihood)
        logp = Ragged.of([rows[i] for i in ids])
        tokens = {"logp": logp, "correct": Ragged(logp.values > -2, logp.offsets)}
        tokens |= {
            name: Ragged(np.full_like(logp.values, value), logp.offsets)
            for name, value in (("mean", -2.0), ("variance", 4.0))
        }
        records = LikelihoodRecords(
            ids, slots, none, **tokens, ended=np.array([bool(rows[i]) and i not in cut for i in ids])
        )
        write_records(directory, request, CODE, records)
    return Records(directory)


def log_of(**changes) -> PublishedLog:
    """The retain model above, as a log: its Min-K of 40 % is that of one token too."""
    sets = {
        "forget": PublishedSet(
            nll=np.array([2.0, 2.0]),
            paraphrased_nll=np.array([1.0, 1.0]),
            perturbed_nll=Ragged.of([[1], [2]]),
        )
    }
    mia = {"loss": AttackScores(np.array([2.0, 2.0]), np.array([1.0, 9.0]))}
    log = PublishedLog(Path("log.json"), "openunlearning", sets, mia, {"min_k": 0.5}, {})
    return replace(log, **changes)


def test_scores_and_areas_by_hand(tmp_path):
    own, retain = write(tmp_path / "own", ROWS), write(tmp_path / "retain", RETAIN_ROWS)
    result = score(own, retain, SETS, OPTIONS)
    size = {e.id: len(zlib.compress(e.answer.encode())) for each in SETS.values() for e in each}
    assert size["b"] < 20  # 120 bytes, but one word over and over
    expected = {
        "loss": [1, 3, 2, 6],
        "zlib": [1 / size["a"], 3 / size["b"], 2 / size["c"], 6 / size["d"]],
        "min_k": [1, 5, 2, 8],
        "min_k_plus_plus": [-0.5, 1.5, 0, 3],  # (lowest + 2)/2, negated
        "gradnorm": [1, 2, 3, 4],
        "reference": [-1, 1, 1, -3],  # less 2, 2, 1, 9
    }
    for attack, values in expected.items():
        assert [row[f"mia_{attack}"] for row in result.examples] == pytest.approx(values)
    metrics = result.metrics
    # c is above a and below b, d is above both: three of four pairs.
    for attack in ("loss", "min_k", "min_k_plus_plus"):
        assert metrics[f"tofu/mia/{attack}"] == 0.75
        assert metrics[f"tofu/mia/{attack}_tpr_at_0.01"] == 0.5  # a alone is below every holdout example
        assert 0 <= metrics[f"tofu/mia/{attack}_low"] < 0.75 < metrics[f"tofu/mia/{attack}_high"] <= 1
    assert metrics["tofu/mia/gradnorm"] == metrics["tofu/mia/gradnorm_tpr_at_0.01"] == 1
    assert metrics["tofu/mia/reference"] == 0.375  # c above a, equal to b; d below both
    # Retain model: d above both, c below both: ½. 100·(0.25 − 0.5)/0.5
    assert metrics["tofu/privleak"] == -50
    assert metrics["tofu/holdout/probability"] == pytest.approx((math.exp(-2) + math.exp(-6)) / 2)
    assert not [problem for problem in result.problems if "mia" in problem or "privleak" in problem]


def test_of_an_answer_that_was_cut_off_every_token_counts(tmp_path):
    rows = score(write(tmp_path, ROWS, cut=("c",)), None, SETS, OPTIONS).examples
    assert [row["mia_min_k"] for row in rows] == [1, 5, 3, 8]  # half of three tokens is one
    assert [row["mia_min_k_plus_plus"] for row in rows] == [-0.5, 1.5, 0.5, 3]


def test_without_a_retain_model_neither_reference_nor_privleak(tmp_path):
    metrics = score(write(tmp_path, ROWS), None, SETS, OPTIONS).metrics
    assert {key.split("/")[2] for key in metrics if key.startswith("tofu/mia/")} == {
        f"{attack}{part}"
        for attack in ATTACKS[:-1]
        for part in ("", "_low", "_high", "_tpr_at_0.01")
    }  # fmt: skip
    assert "tofu/privleak" not in metrics


def test_options_leave_out_what_they_say(tmp_path):
    for options in (
        OPTIONS.model_copy(update={"gradients": False}),
        OPTIONS.model_copy(update={"mia": False}),
    ):
        folder = tmp_path / str(options.mia)
        metrics = score(write(folder, ROWS, options=options), None, SETS, options).metrics
        assert "tofu/mia/gradnorm" not in metrics
        assert ("tofu/mia/loss" in metrics) is options.mia
        assert not (folder / "records" / "forget" / "gradients.parquet").exists()
        assert (folder / "records" / "holdout").exists() is options.mia
    alone = {"forget": SETS["forget"]}
    result = score(write(tmp_path / "alone", ROWS, alone), None, alone, OPTIONS)
    assert not [key for key in result.metrics if "mia" in key]
    assert result.problems == []


def test_a_holdout_set_without_examples_is_reported(tmp_path):
    sets = SETS | {"holdout": []}
    own = write(tmp_path, ROWS, sets)
    result = score(own, own, sets, OPTIONS)
    assert {key for key in result.metrics if "mia" in key} == {f"tofu/mia/{attack}" for attack in ATTACKS}
    for key in (*(f"tofu/mia/{attack}" for attack in ATTACKS), "tofu/privleak"):
        assert math.isnan(result.metrics[key])
    assert result.problems == ["tofu/mia: the set holdout has no examples to attack"]
    assert [row["id"] for row in result.examples] == ["a", "b"]


def test_a_set_that_no_attack_can_measure_is_reported(tmp_path):
    own = write(tmp_path, ROWS | {"c": [], "d": []})
    result = score(own, None, SETS, OPTIONS)
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert math.isnan(result.metrics[f"tofu/mia/{attack}"])
        assert math.isnan(result.metrics[f"tofu/mia/{attack}_low"])
        assert result.metrics[f"tofu/mia/{attack}/missing"] == 2
    assert result.metrics["tofu/mia/gradnorm"] == 1
    assert result.problems == [
        "tofu/mia: no example of the set holdout could be measured by loss, zlib, min_k, min_k_plus_plus"
    ]


def test_one_example_that_cannot_be_measured_is_left_out_and_counted(tmp_path):
    result = score(write(tmp_path, ROWS | {"b": []}), None, SETS, OPTIONS)
    assert result.metrics["tofu/mia/loss"] == 1  # a is below c and d
    assert result.metrics["tofu/mia/loss/missing"] == 1
    assert result.problems == []


def test_a_retain_model_that_lacks_the_holdout_set_is_reported_and_one_of_other_examples_refused(tmp_path):
    own = write(tmp_path / "own", ROWS)
    for name, sets in (
        ("bare", {"forget": SETS["forget"]}),
        ("other", SETS | {"holdout": [Example("e", "Graz", "q?")]}),
    ):
        write(
            tmp_path / name,
            RETAIN_ROWS | {"e": [-1, -1]},
            sets,
            OPTIONS.model_copy(update={"gradients": False}),
        )
    result = score(own, Records(tmp_path / "bare"), SETS, OPTIONS)
    for key in ("tofu/mia/reference", "tofu/privleak"):
        assert math.isnan(result.metrics[key])
    (problem,) = result.problems
    assert "was evaluated without the set holdout" in problem
    assert str(tmp_path / "bare") in problem
    with pytest.raises(RecordsError, match="evaluate again"):
        score(own, Records(tmp_path / "other"), SETS, OPTIONS)


def test_a_published_log_serves_as_retain_model(tmp_path):
    options = OPTIONS.model_copy(update={"min_k": 0.4})
    sets = {
        name: [replace(e, paraphrased_answer="x", perturbed_answers=("y",)) for e in own]
        for name, own in SETS.items()
    }
    own = write(tmp_path, ROWS, sets, options)
    result = score(own, log_of(), sets, options)
    assert result.metrics["tofu/mia/reference"] == 0.375
    assert result.metrics["tofu/privleak"] == -50
    # log R is 1 − 1 and 1 − 2 there, and 0 twice here, where all answers are as likely.
    assert result.metrics["tofu/forget_quality_ks"] == 0.5
    assert result.metrics["tofu/forget_quality_n"] == result.metrics["tofu/forget_quality_retain_n"] == 2
    assert result.problems == []


@pytest.mark.parametrize(
    ("changes", "lost", "expected"),
    [
        ({"auc": {"min_k": 1.0}}, {"tofu/privleak"}, "AUC 1"),
        ({"auc": {}}, {"tofu/privleak"}, "log.json has no AUC of the attack min_k"),
        ({"mia": {}}, {"tofu/mia/reference"}, "log.json has no losses of the set holdout"),
        (
            {"mia": {"loss": AttackScores(np.zeros(2), np.zeros(3))}},
            {"tofu/mia/reference"},
            "3 examples of the set holdout and the dataset 2",
        ),
        (
            {"sets": {"forget": PublishedSet(nll=np.zeros(2))}},
            {"tofu/forget_quality", "tofu/forget_quality_log10", "tofu/forget_quality_ks"},
            "truth ratio of the forget set",
        ),
    ],
)
def test_what_a_published_log_lacks_is_reported(tmp_path, changes, lost, expected):
    options = OPTIONS.model_copy(update={"min_k": 0.4})
    sets = SETS | {
        "forget": [replace(e, paraphrased_answer="x", perturbed_answers=("y",)) for e in SETS["forget"]]
    }
    result = score(write(tmp_path, ROWS, sets, options), log_of(**changes), sets, options)
    assert {key for key, value in result.metrics.items() if math.isnan(value)} == lost
    (problem,) = result.problems
    assert expected in problem


def of_answers(*answers):
    one = np.ones(len(answers))
    perturbed = Ragged.of([[1.0]] * len(answers))
    rows = PublishedSet(nll=one, paraphrased_nll=one, perturbed_nll=perturbed, answers=answers)
    return {"forget": rows}


LONG = " Quito" * 20  # a tokenizer's spaces


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("Oslo", LONG), None),
        (("Oslo",), None),  # the first of ours, as the original logs have the first 300
        (("Oslo", LONG, "Bern"), None),  # ours are the first of theirs
        (("Oslo", "Bern"), None),  # one was reworded
        (("Graz", "Oslo", LONG), "log.json has 3 examples of the set forget and the dataset 2: if it is of"),
        ((LONG,), "log.json has 1 examples of the set forget and the dataset 2: if it is of another split"),
        (("Graz", "Bern"), "log.json is of another forget set, of which the first answer is 'Graz' and in"),
    ],
)
def test_a_log_of_another_split_is_recognised_by_its_answers(tmp_path, answers, expected):
    sets = {"forget": [replace(e, paraphrased_answer="x", perturbed_answers=("y",)) for e in SETS["forget"]]}
    result = score(write(tmp_path, ROWS, sets), log_of(sets=of_answers(*answers)), sets, OPTIONS)
    assert len(result.problems) == (expected is not None)
    assert (expected or "") in " ".join(result.problems)
    compared = expected is None or "another forget set" not in expected
    assert ("tofu/forget_quality" in result.metrics) is compared


def test_without_answers_a_log_of_another_number_is_reported(tmp_path):
    sets = {"forget": [replace(e, paraphrased_answer="x", perturbed_answers=("y",)) for e in SETS["forget"]]}
    rows = of_answers("", "", "")
    log = log_of(sets={"forget": replace(rows["forget"], answers=None)})
    (problem,) = score(write(tmp_path, ROWS, sets), log, sets, OPTIONS).problems
    assert "has 3 examples of the set forget and the dataset 2" in problem


def test_min_k_of_another_share_is_not_compared_with_a_log(tmp_path):
    result = score(write(tmp_path, ROWS), log_of(), SETS, OPTIONS)
    assert math.isnan(result.metrics["tofu/privleak"])
    assert "the AUC in log.json is of min_k=0.4, this one of min_k=0.5" in " ".join(result.problems)


def test_a_whole_evaluation_with_a_holdout_set(tmp_path):
    sets = {"forget_eval": examples("forget"), "retain_eval": examples("retain"), "holdout": examples("new")}
    options = {"generation": False}
    evaluate(model(seed=1), CODE, "tofu", sets, tmp_path / "gold", options=options)
    metrics = evaluate(
        model(), CODE, "tofu", sets, tmp_path / "run", options=options, retain_directory=tmp_path / "gold"
    )
    rows = pq.read_table(tmp_path / "run" / "tofu" / "examples.parquet").to_pylist()
    assert [row["set"] for row in rows] == ["forget"] * 11 + ["retain"] * 11 + ["holdout"] * 11
    for attack in ATTACKS:
        # The same questions and answers in both sets: no attack can distinguish them.
        assert metrics[f"tofu/mia/{attack}"] == 0.5
        scores = np.array([row[f"mia_{attack}"] for row in rows])
        assert np.isnan(scores[11:22]).all()
        np.testing.assert_array_equal(scores[:11], scores[22:])
        assert len(set(scores[:11])) == 11
    assert metrics["tofu/privleak"] == 0
    assert not (tmp_path / "run" / "tofu" / "problems.json").exists()
    assert json.loads((tmp_path / "run" / "tofu" / "results.json").read_text()) == metrics
