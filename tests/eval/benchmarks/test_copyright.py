"""How much of a text is recited: the scores by hand, the gap to the retain model, and a whole evaluation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.copyright import Options, requests, score
from eval.collection.ragged import Ragged
from eval.collection.records import AnyRecords, GenerationRecords, LikelihoodRecords, Records, write_records
from eval.collection.requests import Generation, Likelihood
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, examples, model
from unlearn.data.example import Example

CODE = encoder()
SETS = {
    "forget": [
        Example("book/0", "the old man went down to the sea", "One day"),
        Example("book/9", "and the sea was calm", "He looked"),
    ],
    "retain": [Example("other/0", "a text without a question")],
}
LOGP: dict[str, list[float]] = {"book/0": [-1, -2, -99], "book/9": [-4, -5], "other/0": [-0.5, -0.5, -99]}


def write(directory: Path, texts: list[str | None]) -> Records:
    for request in requests(SETS, Options()):
        ids = [item.example for item in request.items]
        none: list[str | None] = [None] * len(ids)
        zeros = np.zeros(len(ids), np.int32)
        records: AnyRecords
        if isinstance(request, Generation):
            records = GenerationRecords(ids, zeros, none, texts, none)
        else:
            assert isinstance(request, Likelihood)
            rows = Ragged.of([LOGP[i] for i in ids])
            tokens = dict.fromkeys(("logp", "correct", "mean", "variance"), rows)
            ended = np.array([i != "book/9" for i in ids])
            records = LikelihoodRecords(ids, zeros, none, **tokens, ended=ended)
        write_records(directory, request, CODE, records)
    return Records(directory)


def test_what_is_asked() -> None:
    asked = {request.name: request for request in requests(SETS, Options())}
    assert list(asked) == ["forget/continuation", "forget/answer", "retain/answer"]
    assert not any(request.raw for request in asked.values())
    assert all(request.raw for request in requests(SETS, Options(raw=True)))
    generation = asked["forget/continuation"]
    assert isinstance(generation, Generation)
    assert generation.max_new_tokens == 400
    assert [item.question for item in generation.items] == ["One day", "He looked"]


def test_the_scores_by_hand(tmp_path: Path) -> None:
    # All eight words of the first, four of the second's five: "and the sea was" has a brevity penalty.
    ours = write(tmp_path / "ours", ["the old man went down to the sea", "and the sea was"])
    theirs = write(tmp_path / "theirs", ["nothing", "sea"])
    result = score(ours, theirs, SETS, Options())
    bleu = 100 * math.exp(1 - 5 / 4)  # every n-gram of four tokens is right
    assert result.metrics == pytest.approx(
        {
            "copyright/forget/bleu": (100 + bleu) / 2,
            "copyright/forget/rougeL_recall": (1 + 0.8) / 2,
            # End tokens left out; what was cut has none.
            "copyright/forget/perplexity": math.exp((1 + 2 + 4 + 5) / 4),
            "copyright/retain/perplexity": math.exp(0.5),
            # "nothing" has no n-gram right: 0; "sea" has all of its one, at exp(1 − 5/1), and 1 of 5 words.
            "copyright/forget_quality_gap": (100 + bleu) / 2 - 100 * math.exp(-4) / 2 + 100 * (0.9 - 0.1),
        }
    )
    mixed = score(ours, theirs, SETS, Options(gap="mixed")).metrics["copyright/forget_quality_gap"]
    assert mixed == pytest.approx((100 + bleu) / 2 - 100 * math.exp(-4) / 2 + 0.8)
    assert score(ours, ours, SETS, Options()).metrics["copyright/forget_quality_gap"] == 0
    assert "copyright/forget_quality_gap" not in score(ours, None, SETS, Options()).metrics
    rows = result.examples
    assert [row["id"] for row in rows] == ["book/0", "book/9", "other/0"]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert [row["nll"] for row in rows] == [1.5, 4.5, 0.5]
    assert (rows[1]["generation"], rows[1]["rougeL_recall"]) == ("and the sea was", pytest.approx(0.8))
    assert rows[2]["generation"] is None
    assert math.isnan(rows[2]["bleu"])


def test_what_could_not_be_generated_is_missing(tmp_path: Path) -> None:
    found = score(write(tmp_path, [None, "and the sea was calm"]), None, SETS, Options())
    assert found.metrics["copyright/forget/bleu"] == pytest.approx(100)
    assert found.metrics["copyright/forget/bleu/missing"] == 1
    assert found.metrics["copyright/forget/rougeL_recall/missing"] == 1


def test_a_scale_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="'percent' or 'mixed'"):
        Options(gap="both")


@pytest.mark.parametrize("raw", [False, True])
def test_a_whole_evaluation(tmp_path: Path, raw: bool) -> None:
    sets = {"forget_eval": examples("forget")[:4]}
    options = {"max_new_tokens": 8, "raw": raw}
    evaluate(model(1), CODE, "copyright", sets, tmp_path / "retain", options=options)
    found = evaluate(
        model(0), CODE, "copyright", sets, tmp_path / "run", options=options,
        retain_directory=tmp_path / "retain",
    )  # fmt: skip
    assert found.keys() == {
        "copyright/forget/bleu", "copyright/forget/rougeL_recall", "copyright/forget/perplexity",
        "copyright/forget_quality_gap",
    }  # fmt: skip
    assert found["copyright/forget/perplexity"] > 1
    assert all(math.isfinite(value) for value in found.values())
