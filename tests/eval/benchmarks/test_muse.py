"""MUSE: what is asked, the scores by hand, what privleak compares with, and a whole evaluation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.benchmark import BenchmarkError
from eval.benchmarks.muse import READS, RETRAINED, SETS, Options, requests, score
from eval.collection.ragged import Ragged
from eval.collection.records import AnyRecords, GenerationRecords, LikelihoodRecords, Records, write_records
from eval.collection.requests import Generation, Likelihood
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, model
from unlearn.data.example import Example

CODE = encoder()
SETS_BY_NAME = {
    "verbmem": [Example("v/0", "in the old town they met again and again", "It was late and")],
    "knowmem_forget": [Example("f/0", "in Oslo", "Where was Ada born?")],
    "knowmem_forget_icl": [Example("fi/0", "Graz", "Where is it?"), Example("fi/1", "1984", "When?")],
    "knowmem_retain": [Example("r/0", "running", "What was she doing?")],
    "knowmem_retain_icl": [Example("ri/0", "Bern", "Which town?")],
    "privleak_forget": [Example("p/0", "one text"), Example("p/1", "two texts")],
    "privleak_holdout": [Example("h/0", "three texts"), Example("h/1", "four texts")],
}
GENERATED = {
    "verbmem": ("in the new town", "in the old town"),  # the text, and the truth cut to as many tokens
    "knowmem_forget": ("it was Oslo\n\nQuestion: and", None),
    "knowmem_retain": ("run Question: run", None),
}
# The last value is the end token's, which takes no part, but in h/1, which was cut.
LOGP = {
    "p/0": [-1, -4, -2, -1, -1, -99],
    "p/1": [-3, -3, -99],
    "h/0": [-2, -99],
    "h/1": [-5, -1],
}


def write(
    directory: Path, sets: dict[str, list[Example]], options: Options, generated: Any = GENERATED
) -> Records:
    for request in requests(sets, options):
        ids = [item.example for item in request.items]
        none: list[str | None] = [None] * len(ids)
        zeros = np.zeros(len(ids), np.int32)
        records: AnyRecords
        if isinstance(request, Generation):
            text, truth = generated[request.name]
            records = GenerationRecords(ids, zeros, none, [text] * len(ids), [truth] * len(ids))
        else:
            assert isinstance(request, Likelihood)
            rows = Ragged.of([LOGP[i] for i in ids])
            tokens = dict.fromkeys(("logp", "correct", "mean", "variance"), rows)
            ended = np.array([i != "h/1" for i in ids])
            records = LikelihoodRecords(ids, zeros, none, **tokens, ended=ended)
        write_records(directory, request, CODE, records)
    return Records(directory)


def test_what_is_asked() -> None:
    asked = {request.name: request for request in requests(SETS_BY_NAME, Options())}
    assert list(asked) == [
        "verbmem",
        "knowmem_forget",
        "knowmem_retain",
        "privleak_forget",
        "privleak_holdout",
    ]
    passage, question = asked["verbmem"], asked["knowmem_forget"]
    assert isinstance(passage, Generation)
    assert isinstance(question, Generation)
    assert (passage.max_new_tokens, passage.raw, question.max_new_tokens, question.raw) == (
        128,
        True,
        32,
        True,
    )
    assert passage.items[0].question == "It was late and"
    assert passage.items[0].truth == "in the old town they met again and again"
    shown = "Question: Where is it?\nAnswer: Graz\n\nQuestion: When?\nAnswer: 1984\n\n"
    assert question.items[0].question == shown + "Question: Where was Ada born?\nAnswer:"
    texts = asked["privleak_forget"]
    assert isinstance(texts, Likelihood)
    assert [(i.question, i.answer) for i in texts.items] == [(None, "one text"), (None, "two texts")]


@pytest.mark.parametrize(("icl", "shown"), [(0, ""), (1, "Question: Where is it?\nAnswer: Graz\n\n")])
def test_so_many_examples_before_a_question(icl: int, shown: str) -> None:
    sets = {name: SETS_BY_NAME[name] for name in ("knowmem_forget", "knowmem_forget_icl")}
    (request,) = requests(sets, Options(icl=icl))
    assert isinstance(request, Generation)
    assert request.items[0].question == f"{shown}Question: Where was Ada born?\nAnswer:"


def test_the_scores_by_hand(tmp_path: Path) -> None:
    read = write(tmp_path, SETS_BY_NAME, Options())
    result = score(read, None, SETS_BY_NAME, Options(retain_auc="news"))
    assert result.problems == []
    assert result.metrics == pytest.approx(
        {
            "muse/forget/verbmem": 0.75,  # 3 of 4 words both ways
            "muse/forget/knowmem": 0.4,  # "it was Oslo" and "in Oslo": P = 1/3, R = 1/2
            "muse/retain/knowmem": 0.0,  # "run" is not "running" without a stemmer
            # Min-40 %: p/0 mean(4, 2) of 5, p/1 3 of 2 (one token), h/0 2, h/1 5. Pairs h > p: 5 > 3, 5 > 3;
            # 2 > 3 never. 2 of 4.
            "muse/mia/min_k_auc": 0.5,
            "muse/privleak": 100 * (0.5 - 0.4772) / 0.4772,
        }
    )
    stemmed = score(read, None, SETS_BY_NAME, Options(retain_auc="books", stemmer=True)).metrics
    assert stemmed["muse/retain/knowmem"] == 1
    assert stemmed["muse/privleak"] == pytest.approx(100 * (0.5 - 0.5393) / 0.5393)
    rows = {row["id"]: row for row in result.examples}
    assert list(rows) == ["v/0", "f/0", "r/0", "p/0", "p/1", "h/0", "h/1"]
    assert {tuple(row) for row in result.examples} == {tuple(rows["v/0"])}
    assert (rows["v/0"]["answer"], rows["v/0"]["generation"]) == ("in the old town", "in the new town")
    assert rows["f/0"]["generation"] == "it was Oslo"
    assert rows["r/0"]["generation"] == "run "
    assert [rows[i]["min_k"] for i in ("p/0", "p/1", "h/0", "h/1")] == [3, 3, 2, 5]


def test_privleak_compares_with_the_retain_model(tmp_path: Path) -> None:
    read = write(tmp_path, SETS_BY_NAME, Options())
    same = score(read, read, SETS_BY_NAME, Options())
    assert same.metrics["muse/privleak"] == 0
    # What is asked for by name comes before the run's own retain model.
    given = score(read, read, SETS_BY_NAME, Options(retain_auc=0.75))
    assert given.metrics["muse/privleak"] == 100  # (.5 − .25)/.25
    alone = score(read, None, SETS_BY_NAME, Options())
    assert math.isnan(alone.metrics["muse/privleak"])
    assert "retain_auc" in alone.problems[0]
    assert alone.metrics["muse/mia/min_k_auc"] == 0.5


def test_every_part_goes_by_itself(tmp_path: Path) -> None:
    forget = {name: own for name, own in SETS_BY_NAME.items() if SETS.get(name, "forget") == "forget"}
    read = write(tmp_path, forget, Options())
    assert score(read, None, forget, Options()).metrics.keys() == {
        "muse/forget/verbmem",
        "muse/forget/knowmem",
    }
    with pytest.raises(BenchmarkError, match="knowmem_forget_icl"):
        requests({"knowmem_forget": SETS_BY_NAME["knowmem_forget"]}, Options())
    with pytest.raises(BenchmarkError, match="v/0 has no question"):
        requests({"verbmem": [replace(SETS_BY_NAME["verbmem"][0], question=None)]}, Options())


def test_what_could_not_be_generated_is_missing(tmp_path: Path) -> None:
    sets = {"verbmem": SETS_BY_NAME["verbmem"]}
    read = write(tmp_path, sets, Options(), {"verbmem": (None, "in the old town")})
    found = score(read, None, sets, Options())
    assert math.isnan(found.metrics["muse/forget/verbmem"])
    assert found.metrics["muse/forget/verbmem/missing"] == 1
    assert found.examples[0]["generation"] is None


@pytest.mark.parametrize(
    ("given", "words"),
    [({"retain_auc": "wiki"}, "'news' or 'books'"), ({"retain_auc": 47.7}, "between 0 and 1"),
     ({"k": 0}, "k=0"), ({"icl": -1}, "icl=-1"),
     ({"k": 0.2, "retain_auc": "news"}, "retain_auc=news is of k=0.4, not of k=0.2")],
)  # fmt: skip
def test_options_that_make_no_sense(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**given)


def test_published_retrained_models_are_turned_round() -> None:
    # The released code's 0.4772 is the chance that a forget text is the less likely one.
    assert pytest.approx({"news": 0.5228, "books": 0.4607}) == RETRAINED


def test_a_whole_evaluation(tmp_path: Path) -> None:
    sets = {name: SETS_BY_NAME[name] for name in (*SETS, *READS)}
    options = {"verbmem_tokens": 8, "knowmem_tokens": 8}
    evaluate(model(1), CODE, "muse", sets, tmp_path / "retain", options=options)
    found = evaluate(
        model(0), CODE, "muse", sets, tmp_path / "run", options=options, retain_directory=tmp_path / "retain"
    )
    assert found.keys() == {
        "muse/forget/verbmem", "muse/forget/knowmem", "muse/retain/knowmem", "muse/mia/min_k_auc",
        "muse/privleak",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in found.values())
    rows = pq.read_table(tmp_path / "run" / "muse" / "examples.parquet").to_pylist()
    truth = next(row["answer"] for row in rows if row["set"] == "verbmem")
    assert SETS_BY_NAME["verbmem"][0].answer.startswith(truth)
    assert len(CODE.tokenizer(truth)["input_ids"]) == 8
    assert [row["id"] for row in rows if row["min_k"] > 0] == ["p/0", "p/1", "h/0", "h/1"]


def test_the_same_texts_on_both_sides_cannot_be_distinguished(tmp_path: Path) -> None:
    texts = [Example(f"{i}", f"a text of number {i}") for i in range(3)]
    sets = {"privleak_forget": texts, "privleak_holdout": texts}
    found = evaluate(model(0), CODE, "muse", sets, tmp_path, options={"retain_auc": 0.5})
    assert found == {"muse/mia/min_k_auc": 0.5, "muse/privleak": 0}
