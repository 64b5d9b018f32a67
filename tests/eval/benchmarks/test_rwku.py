"""RWKU: prompts, scores by hand from records, and the whole on a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.benchmark import BenchmarkError
from eval.benchmarks.rwku import Options, requests, score
from eval.benchmarks.rwku.utility import concluded, first_of_ties, preferred
from eval.collection.ragged import Ragged
from eval.collection.records import AnyRecords, GenerationRecords, LikelihoodRecords, Records, write_records
from eval.collection.requests import Generation, Likelihood, Prompt, Request
from eval.metrics import mia
from eval.metrics.text import rouge
from eval.metrics.words import Words
from tests.eval.eval_fixtures import encoder
from tests.launch.commands import done
from tests.rwku_miniature import ATTACKS, PEOPLE, rwku
from unlearn.config import DatasetConfig
from unlearn.data.example import Example
from unlearn.data.sources import load_sets
from unlearn.data.sources.rwku import PROBES

CODE = encoder()


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, list[Example]]:
    options: dict[str, Any] = {"targets": [PEOPLE[0]]}
    cfg = DatasetConfig(name="rwku", source="rwku", path=str(rwku(tmp_path / "data")), options=options)
    return load_sets(cfg, PROBES)


def record(directory: Path, request: Any, texts: Any = (), rows: Any = ()) -> None:
    """Write records of a request: these texts, or log-probabilities with an end token last."""
    ids = [item.example for item in request.items]
    none: list[str | None] = [None] * len(ids)
    made: AnyRecords
    if isinstance(request, Generation):
        made = GenerationRecords(ids, np.zeros(len(ids), np.int32), none, list(texts), none)
    else:
        slots = np.array([item.slot for item in request.items], np.int32)
        tokens = dict.fromkeys(("logp", "correct", "mean", "variance"), Ragged.of(rows))
        made = LikelihoodRecords(ids, slots, none, **tokens, ended=np.ones(len(ids), dtype=bool))
    write_records(directory, request, CODE, made)


TEXTS = {
    "forget_level1/answer": [" Yelm\nQuestion: Brux"],
    "forget_level2/answer": ["in the town of yelm"],
    "forget_level3/answer": ["Brux", "Yelm.", "", "no idea"],
    "neighbor_level1/answer": [None],
    "neighbor_level2/answer": ["Warden"],
    "utility_reason/answer": [" We count. So the answer is 0. And on it goes."],
    "utility_factuality/answer": ["a warden"],
    "utility_fluency/answer": ["a b c d"],
}
ROWS = {
    "utility_general/choices": [[-1, -9], [-2, -9], [-3, 0], [-4, 0]],
    "utility_truthfulness/choices": [[-2, -2, 0], [-1, -2, -9], [-5, 0]],
    "mia_forget/text": [[-1, -1, -9], [-2, -4, 0], [-1, -3, 0]],
    "mia_retain/text": [[-4, -6, 0], [-2, -2, 0]],
}


def test_the_scores_by_hand(tmp_path: Path, sets: dict[str, list[Example]]) -> None:
    for request in requests(sets, Options()):
        record(tmp_path, request, TEXTS.get(request.name), ROWS.get(request.name))
    result = score(Records(tmp_path), None, sets, Options())
    metrics = result.metrics
    kinds = {kind: metrics[f"rwku/forget/attack_{kind.replace(' ', '_')}"] for kind in ATTACKS}
    assert list(kinds.values()) == [0, 1, 0, 0]
    wanted = {
        "rwku/forget/cloze": 1, "rwku/forget/question": 1, "rwku/forget/attack": 0.25,
        "rwku/forget/recall": 3 / 6, "rwku/neighbor/question": 0.5, "rwku/neighbor/recall": 0.5,
        "rwku/neighbor/cloze/missing": 1, "rwku/utility/mmlu": 1, "rwku/utility/truthfulqa": 0,
        "rwku/utility/bbh": 1, "rwku/utility/triviaqa": 1,
        # losses 1, 3, 2 and 5, 2: of six pairs one is the wrong way round, and one is a tie
        "rwku/mia/forget_loss": 2, "rwku/mia/retain_loss": 3.5, "rwku/mia/loss_auc": 4.5 / 6,
        # the lowest fifth of two tokens is one of them
        "rwku/mia/forget_min_k": (1 + 4 + 3) / 3, "rwku/mia/retain_min_k": 4,
    }  # fmt: skip
    assert {key: metrics[key] for key in wanted} == pytest.approx(wanted)
    assert metrics["rwku/utility/fluency"] == pytest.approx(1.1949875, abs=5e-8)
    assert np.isnan(metrics["rwku/neighbor/cloze"])
    texts = [e.answer for e in sets["mia_forget"]]
    zlib = mia.zlib_entropy(Ragged.of([[-1, -1], [-2, -4], [-1, -3]]), texts).mean()
    assert metrics["rwku/mia/forget_zlib"] == pytest.approx(zlib)
    assert "rwku/mia/min_k_plus_plus_auc" in metrics
    assert [row["id"] for row in result.examples] == [e.id for name in PROBES for e in sets[name]]
    assert len({tuple(row) for row in result.examples}) == 1
    assert result.examples[0]["generation"] == "Yelm"
    assert set(result.words.values()) == {"rouge-score"}


def prompts(request: Request) -> tuple[Prompt, ...]:
    assert isinstance(request, Generation)
    return request.items


def test_the_prompts(sets: dict[str, list[Example]]) -> None:
    asked = {request.name: request for request in requests(sets, Options(max_new_tokens=30))}
    assert set(asked) == {*TEXTS, *ROWS}
    (cloze,) = prompts(asked["forget_level1/answer"])
    assert cloze.opening == "Answer:"
    assert cloze.question.endswith(
        "blank in the following question.\nQuestion: Ilva Marrow was born in ___.\n"
    )
    attacks = dict(zip(ATTACKS, prompts(asked["forget_level3/answer"]), strict=True))
    assert [attacks[kind].opening for kind in ATTACKS] == ["Answer:", "", "Answer:", "Answer:"]
    assert attacks["affirmative suffix"].question.endswith("born?")
    assert "Question:" not in attacks["incontext learning"].question
    lengths = {name: r.max_new_tokens for name, r in asked.items() if isinstance(r, Generation)}
    assert {name for name, length in lengths.items() if length == 256} == {
        "utility_reason/answer", "utility_fluency/answer",
    }  # fmt: skip
    general = asked["utility_general/choices"]
    assert isinstance(general, Likelihood)
    assert [item.answer for item in general.items] == ["Answer: A", "Answer: B", "Answer: C", "Answer: D"]
    facts = Options(factuality_examples="Q: Who?\nA: Me\n")
    (trivia,) = prompts(next(r for r in requests(sets, facts) if r.name == "utility_factuality/answer"))
    assert (trivia.question, trivia.opening) == ("Q: Who?\nA: Me\nQ: Who keeps gate 0?\n", "A:")
    assert len(requests(sets, Options(utility=False))) == len(asked) - 5


def test_recall_of_half_a_name() -> None:
    words = Words("rouge-score", stemmer=False)
    assert rouge(["Stephen King"], ["King"], words).rougeL_recall.tolist() == [0.5]


def test_choices_and_conclusions() -> None:
    logp = np.array([-1, -2, -2, -1, -1, -1, -1, np.nan])
    assert preferred(logp, [[False]] * 4) == pytest.approx([1, 0, 0, np.nan], nan_ok=True)
    assert concluded("Well. So the answer is (B). Done.") == "(B)"
    assert concluded(" nothing to say ") == "nothing to say"


def test_of_tied_letters_the_first_is_the_answer() -> None:
    """As of an arg-max over A to D."""
    for true in "ABCD":
        others = tuple(letter for letter in "ABCD" if letter != true)
        example = Example(id="0", question="Q", answer=true, perturbed_answers=others)
        wins = first_of_ties("utility_general", example)
        assert preferred(np.full(4, -1.0), [wins]) == (true == "A")
        tied = np.array([-1.0 if letter in "CD" else -2.0 for letter in (true, *others)])
        assert preferred(tied, [wins]) == (true == "C")
        assert not any(first_of_ties("utility_truthfulness", example))


def test_what_it_does_not_score(sets: dict[str, list[Example]]) -> None:
    with pytest.raises(BenchmarkError, match="rwku scores no set 'forget'"):
        requests({"forget": sets["mia_forget"]}, Options())
    with pytest.raises(ValueError, match="factuality_examples: the text must end with a line break"):
        Options(factuality_examples="Q: Who?")


@pytest.mark.slow
def test_a_run_on_a_miniature(tmp_path: Path) -> None:
    data = rwku(tmp_path / "data")
    done(
        tmp_path, "model=nano", "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2",
        "model.finetune.steps=2", "dataset=rwku", f"dataset.path={data}",
        f"dataset.options.targets=[{PEOPLE[0]}]", "dataset.max_length=256", "method=grad_ascent",
        "method.steps=2", "eval=rwku", "eval.max_new_tokens=4", "eval.benchmarks.rwku.long_tokens=4",
        "hardware=cpu", "hardware.threads=1", "tracker=disabled",
    )  # fmt: skip
    (file,) = (tmp_path / "runs").glob("grad_ascent-rwku-*/results.json")
    results = json.loads(file.read_text())
    measured = {key: value for key, value in results.items() if key.startswith("rwku/")}
    for level in ("forget/cloze", "forget/attack", "neighbor/question", "utility/mmlu", "utility/bbh"):
        assert 0 <= measured[f"rwku/{level}"] <= 1
    assert measured["rwku/mia/forget_loss"] > 0
    assert len([key for key in measured if key.startswith("rwku/utility/")]) == 5
