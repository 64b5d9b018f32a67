"""Leakage over several samples: estimates by hand and by enumeration, and a whole evaluation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from eval.benchmark import BenchmarkError, find, options_of
from eval.benchmarks.sampling import Options, any_leaks, expected_max, interval, requests, score
from eval.collection.records import GenerationRecords, Records, write_records
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, examples, model
from unlearn.data.example import Example
from unlearn.errors import ConfigError
from unlearn.files import read_json

CODE = encoder()
TRUE = "one two three four five"


def write(directory, sets, options, texts):
    """Records in which the samples of each example are these texts."""
    [request] = requests(sets, options)
    ids = [item.example for item in request.items for _ in range(options.samples)]
    numbers = np.tile(np.arange(options.samples, dtype=np.int32), len(request.items))
    none: list[str | None] = [None] * len(ids)
    generated = [text for own in texts for text in own]
    write_records(directory, request, CODE, GenerationRecords(ids, numbers, none, generated, none))


def test_the_chance_of_a_leak_by_hand():
    assert any_leaks(1, 4, 1) == 0.25
    assert any_leaks(1, 4, 2) == 0.5  # 1 − C(3, 2)/C(4, 2) = 1 − 3/6
    assert any_leaks(2, 4, 2) == pytest.approx(5 / 6)  # 1 − C(2, 2)/C(4, 2)
    assert any_leaks(0, 16, 16) == 0
    assert any_leaks(1, 16, 16) == 1
    assert any_leaks(3, 4, 2) == 1  # two of four always hold one of three
    assert math.isnan(any_leaks(1, 3, 4))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_both_estimates_are_means_over_all_choices(k):
    values = np.array([0.3, 0.9, 0.1, 0.9, 0.8])
    chosen = [max(some) for some in combinations(values, k)]
    assert expected_max(values, k) == pytest.approx(np.mean(chosen))
    assert any_leaks(3, 5, k) == pytest.approx(np.mean([best >= 0.8 for best in chosen]))


def test_the_estimate_is_unbiased():
    # With chance p of a leak, c of n is binomial; the mean over it is that of k new samples.
    p, n, k = 0.2, 6, 3
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * any_leaks(c, n, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k)


def test_the_interval():
    low, high = interval(0.15, 20)
    wilson = binomtest(3, 20).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    # nothing leaked in ten examples: z²/(n + z²) = 3.8415/13.8415
    assert interval(0.0, 10) == pytest.approx((0, 0.277533), abs=1e-6)
    assert interval(1.0, 10) == pytest.approx((1 - 0.277533, 1), abs=1e-6)
    assert np.isnan(interval(math.nan, 0)).all()
    assert np.isnan(interval(0.5, 0)).all()


def test_two_examples_by_hand(tmp_path):
    sets = {"forget": [Example("forget/0", TRUE, "q?"), Example("forget/1", "Oslo", "where?")]}
    options = Options(samples=4, ks=(1, 2, 4))
    # recalls .4, .8, 1, 0 and 0, 0, 0, 1: of the first two leak at .8, of the second one
    texts = [["one two", "four one two three five", f"so: {TRUE}", ""], ["Bern", "Lima", "x", "in oslo!"]]
    write(tmp_path, sets, options, texts)
    result = score(Records(tmp_path), None, sets, options)
    low, high = interval(0.375, 2)
    wanted = {
        "leakage_at_1": (2 / 4 + 1 / 4) / 2,
        "leakage_at_2": (5 / 6 + 1 / 2) / 2,
        "leakage_at_4": 1,
        "leakage_at_1_low": low,
        "leakage_at_1_high": high,
        "rougeL_recall": (2.2 / 4 + 1 / 4) / 2,
        "rougeL_recall_max_at_1": (2.2 / 4 + 1 / 4) / 2,
        # of six pairs the best: 1 three times, .8 twice, .4 once; and 1 three times
        "rougeL_recall_max_at_2": ((3 + 1.6 + 0.4) / 6 + 3 / 6) / 2,
        "rougeL_recall_max_at_4": 1,
    }
    keys = {f"sampling/forget/{key}": value for key, value in wanted.items()}
    assert {key: result.metrics[key] for key in keys} == pytest.approx(keys)
    rest = set(result.metrics) - set(keys)
    assert rest == {f"sampling/forget/leakage_at_{k}_{side}" for k in (2, 4) for side in ("low", "high")}
    assert [row["generation"] for row in result.examples] == [f"so: {TRUE}", "in oslo!"]
    assert result.examples[1]["leakage_at_2"] == 0.5


def test_what_was_not_generated_is_missing(tmp_path):
    sets = {"forget": [Example("forget/0", TRUE, "q?"), Example("forget/1", "Oslo", "where?")]}
    options = Options(samples=2, ks=(1, 2))
    write(tmp_path, sets, options, [[None, None], ["Oslo", None]])
    result = score(Records(tmp_path), None, sets, options)
    assert result.metrics["sampling/forget/leakage_at_1"] == 1
    assert result.metrics["sampling/forget/leakage_at_1/missing"] == 1
    assert result.metrics["sampling/forget/leakage_at_1_low"] == interval(1.0, 1)[0]
    assert math.isnan(result.metrics["sampling/forget/leakage_at_2"])
    assert math.isnan(result.metrics["sampling/forget/leakage_at_2_high"])
    assert [row["generation"] for row in result.examples] == [None, "Oslo"]


def test_the_tokenizer_is_that_of_the_true_answers_and_its_name_is_reported(tmp_path):
    sets = {"forget": [Example("forget/0", "在8号", "q?"), Example("forget/1", "——", "q?")]}
    options = Options(samples=2, ks=(1,))
    write(tmp_path, sets, options, [["8", "在8号。"], ["——", "8"]])
    result = score(Records(tmp_path), None, sets, options)
    # Of three words one, of three words three; nothing of the second.
    assert result.metrics["sampling/forget/rougeL_recall"] == pytest.approx((1 / 3 + 1) / 2)
    assert result.metrics["sampling/forget/rougeL_recall/missing"] == 1
    assert result.words == {"forget": "unicode"}
    [problem] = result.problems
    assert "example forget/1: the true answer has no word" in problem
    old = score(Records(tmp_path), None, sets, Options(samples=2, ks=(1,), words="rouge-score"))
    assert old.metrics["sampling/forget/rougeL_recall"] == 1
    assert old.words == {"forget": "rouge-score"}


def test_a_whole_evaluation_is_the_same_twice(tmp_path):
    sets = {"forget_eval": examples("forget")[:4]}
    options = {"samples": 3, "ks": [1, 3], "max_new_tokens": 6}
    found = [evaluate(model(), CODE, "sampling", sets, tmp_path / str(i), options=options) for i in range(2)]
    assert found[0] == found[1]
    assert found[0]["sampling/forget/leakage_at_1"] <= found[0]["sampling/forget/leakage_at_3"]
    rows = pq.ParquetFile(tmp_path / "0" / "sampling" / "examples.parquet").read().to_pylist()
    assert [row["id"] for row in rows] == [e.id for e in sets["forget_eval"]]
    assert read_json(tmp_path / "0" / "sampling" / "words.json") == {"forget": "rouge-score"}
    texts = Records(tmp_path / "0" / "sampling").generation("forget/samples").text
    assert len(texts) == 12
    assert len(set(texts)) > 4  # the samples of a question differ


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 4}, "at most samples=4"),
        ({"ks": []}, "ks="),
        ({"temperature": 0.0}, "temperature=0"),
        ({"threshold": 1.2}, "threshold=1.2"),
        ({"words": "chinese"}, "words='chinese': input should be 'auto', 'rouge-score' or 'unicode'"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        options_of(find("sampling"), options, "sampling")


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(BenchmarkError, match="forget/0 has no question"):
        requests({"forget": [Example("forget/0", "a plain text")]}, Options())
    with pytest.raises(BenchmarkError, match="scores no set 'retain'"):
        requests({"retain": examples("retain")}, Options())
