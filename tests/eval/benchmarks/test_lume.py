"""LUME: twelve terms, their harmonic mean, the membership attack, and what is left out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from eval.benchmark import BenchmarkError
from eval.benchmarks.lume import GROUPS, Options, requests, score
from eval.collection.ragged import Ragged
from eval.collection.records import AnyRecords, GenerationRecords, LikelihoodRecords, Records, write_records
from eval.collection.requests import Generation, Likelihood
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, model, needs_shared
from tests.paths import SHARED
from unlearn.config import DatasetConfig
from unlearn.data.example import Example
from unlearn.data.sources import load_sets

STORY = "one two three four"
CODE = encoder()


def pair(name: str, group: str, count: int = 2) -> list[Example]:
    answer = STORY if group.endswith("regurgitation") else "Oslo."
    return [Example(f"{name}/{group}/{i}", answer, f"{group} {i}:", group=group) for i in range(count)]


def both() -> dict[str, list[Example]]:
    return {name: [e for group in GROUPS for e in pair(name, group)] for name in ("forget", "retain")}


DOCUMENTS = {
    name: [Example(f"{name}/{i}", f"a document {i}") for i in range(2)] for name in ("member", "nonmember")
}
# The last value is that of the end token, which the attack leaves out, but for member/1, which was cut.
ROWS = {"member/0": [-1, -1, -9], "member/1": [-2, -4], "nonmember/0": [-2, 0], "nonmember/1": [-4, 0]}


def write(directory, sets, texts):
    """Records of these texts, by set and kind: one for each example, in turn."""
    for request in requests(sets, Options()):
        ids = [item.example for item in request.items]
        none: list[str | None] = [None] * len(ids)
        records: AnyRecords
        if isinstance(request, Generation):
            assert request.raw
            given = texts[request.name]
            generated = [given[i % len(given)] for i in range(len(ids))]
            records = GenerationRecords(ids, np.zeros(len(ids), np.int32), none, generated, none)
        else:
            assert isinstance(request, Likelihood)
            rows = Ragged.of([ROWS[i] for i in ids])
            tokens = dict.fromkeys(("logp", "correct", "mean", "variance"), rows)
            ended = np.array([i != "member/1" for i in ids])
            records = LikelihoodRecords(ids, np.zeros(len(ids), np.int32), none, **tokens, ended=ended)
        write_records(directory, request, CODE, records)


HALF = {
    "forget/regurgitation": ["two four", "two four"],  # 2 of 4 words
    "forget/knowledge": [" oSLO. \n", "Oslo"],  # 1 and 0
    "retain/regurgitation": ["three", "x three y"],  # 1 of 4 words
    "retain/knowledge": ["Oslo.", "oslo."],
}


def test_the_scores_by_hand(tmp_path):
    sets = both() | DOCUMENTS
    write(tmp_path, sets, HALF)
    result = score(Records(tmp_path), None, sets, Options(mmlu=0.4))
    aggregate = 12 / (6 / 0.5 + 3 / 0.25 + 3 / 1)  # of forget, 1 − .5 six times
    wanted = {"lume/task_aggregate": aggregate}
    for task in ("task1", "task2", "task3"):
        wanted |= {f"lume/forget/{task}_regurgitation": 0.5, f"lume/forget/{task}_knowledge": 0.5}
        wanted |= {f"lume/retain/{task}_regurgitation": 0.25, f"lume/retain/{task}_knowledge": 1}
    wanted |= {"lume/forget/regurgitation": 0.5, "lume/forget/knowledge": 0.5}
    wanted |= {"lume/retain/regurgitation": 0.25, "lume/retain/knowledge": 1}
    # members lose 1 and 3, others 2 and 4: of four pairs only (3, 2) is the wrong way round
    wanted |= {"lume/mia/loss_auc": 0.75, "lume/mia_score": 0.5}
    wanted["lume/final"] = (aggregate + 0.5 + 0.4) / 3
    assert result.metrics == pytest.approx(wanted)
    assert result.problems == []
    assert "lume/final" not in score(Records(tmp_path), None, sets, Options()).metrics
    assert [row["id"] for row in result.examples] == [e.id for rows in sets.values() for e in rows]
    assert len({tuple(row) for row in result.examples}) == 1
    first, second = result.examples[0], result.examples[2]
    assert (first["rougeL_recall"], first["generation"]) == (0.5, "two four")
    assert math.isnan(first["exact_match"])
    assert (second["exact_match"], second["group"]) == (1.0, "task1/knowledge")
    assert [row["nll"] for row in result.examples[-4:]] == [1, 3, 2, 4]


def test_one_term_of_nothing_makes_the_aggregate_nothing(tmp_path):
    sets = both()
    write(tmp_path, sets, HALF | {"forget/knowledge": ["Oslo."]})
    metrics = score(Records(tmp_path), None, sets, Options(mmlu=0.4)).metrics
    assert metrics["lume/task_aggregate"] == 0
    assert not {"lume/mia_score", "lume/final"} & set(metrics)


def test_an_absent_term_is_named_and_leaves_no_aggregate(tmp_path):
    sets = both() | DOCUMENTS
    sets["retain"] = [e for e in sets["retain"] if e.group != "task3/regurgitation"]
    write(tmp_path, sets, HALF)
    result = score(Records(tmp_path), None, sets, Options(mmlu=0.4))
    assert math.isnan(result.metrics["lume/task_aggregate"])
    assert math.isnan(result.metrics["lume/final"])
    assert "lume/retain/task3_regurgitation" not in result.metrics
    [problem] = result.problems
    assert "retain/task3/regurgitation" in problem
    assert "forget/" not in problem


def test_what_was_not_generated_is_counted(tmp_path):
    sets = both()
    write(tmp_path, sets, HALF | {"retain/regurgitation": ["", None], "retain/knowledge": [None]})
    result = score(Records(tmp_path), None, sets, Options())
    assert result.metrics["lume/retain/task1_regurgitation"] == 0  # saying nothing is an answer
    assert result.metrics["lume/retain/task1_regurgitation/missing"] == 1
    assert math.isnan(result.metrics["lume/retain/task1_knowledge"])
    assert result.metrics["lume/retain/knowledge/missing"] == 6
    assert math.isnan(result.metrics["lume/task_aggregate"])


def test_one_set_alone_has_its_terms_and_no_aggregate(tmp_path):
    sets = {"forget": both()["forget"], "member": DOCUMENTS["member"]}
    asked = {r.name: r.max_new_tokens for r in requests(sets, Options()) if isinstance(r, Generation)}
    assert asked == {"forget/regurgitation": 256, "forget/knowledge": 128}
    write(tmp_path, sets, HALF)
    result = score(Records(tmp_path), None, sets, Options(mmlu=0.5))
    assert {key.split("/")[1] for key in result.metrics} == {"forget"}
    assert result.problems == []


def test_a_whole_evaluation(tmp_path):
    sets = {f"{name}_eval": rows for name, rows in both().items()} | DOCUMENTS
    options = {"max_new_tokens": 4, "knowledge_tokens": 3, "mmlu": 0.25}
    metrics = evaluate(model(), CODE, "lume", sets, tmp_path, options=options)
    assert metrics["lume/retain/regurgitation"] <= 1
    assert 0 <= metrics["lume/mia/loss_auc"] <= 1
    assert {"lume/task_aggregate", "lume/final"} <= set(metrics)
    saved = json.loads((tmp_path / "lume" / "results.json").read_text())
    assert saved["lume/mia_score"] == metrics["lume/mia_score"]


def test_what_is_not_of_lume_is_refused():
    with pytest.raises(BenchmarkError, match="scores no set 'holdout'"):
        requests({"holdout": []}, Options())
    with pytest.raises(BenchmarkError, match=r"forget/0 is of group None.* choose dataset=lume"):
        requests({"forget": [Example("forget/0", "a", "q")]}, Options())
    with pytest.raises(ValueError, match="between 0 and 1"):
        Options(mmlu=46.3)


@needs_shared
def test_the_real_rows_known_by_heart(tmp_path):
    cfg = DatasetConfig(name="lume", source="lume", path=str(SHARED / "data" / "lume"))
    loaded = load_sets(cfg, ["forget_eval", "retain_eval"])
    sets = {name.removesuffix("_eval"): rows for name, rows in loaded.items()}
    answers = {e.id: e.answer for rows in sets.values() for e in rows}
    for request in requests(sets, Options()):
        ids = [item.example for item in request.items]
        none: list[str | None] = [None] * len(ids)
        generated: list[str | None] = [answers[i] + " " for i in ids]
        records = GenerationRecords(ids, np.zeros(len(ids), np.int32), none, generated, none)
        write_records(tmp_path, request, CODE, records)
    result = score(Records(tmp_path), None, sets, Options())
    assert {key: value for key, value in result.metrics.items() if value != 1} == {"lume/task_aggregate": 0}
    assert len(result.metrics) == 2 * 8 + 1
    assert result.problems == []
    # A token of an answer is at least a byte, so no answer to a question is cut by the smaller limit.
    short = [e for rows in sets.values() for e in rows if str(e.group).endswith("knowledge")]
    longest = max(len(e.answer.encode()) for e in short)
    assert longest < Options().knowledge_tokens
