"""R-TOFU: traces and answers apart, scores by hand from records, and the whole on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval.benchmark import BenchmarkError
from eval.benchmarks.rtofu import Options, requests, score
from eval.collection.records import GenerationRecords, Records, write_records
from eval.collection.requests import Generation
from eval.metrics.likelihood import harmonic_mean
from eval.metrics.reasoning import answer_of, sentences, trace_of, trace_recall
from eval.metrics.words import Words
from tests.eval.eval_fixtures import encoder
from tests.launch.commands import done
from tests.rtofu_miniature import rtofu
from unlearn.config import DatasetConfig
from unlearn.data.example import Example
from unlearn.data.sources import load_sets

WORDS = Words("rouge-score")
TEXTS = {
    "forget/generation": ["I recall gate 0.\n</think>\n\nOdo 10 opens gate 9.", "gate 1 it is, it is, it"],
    "forget/short": ["Odo 10 keeps gate 0.", ""],
    "retain/generation": ["</think> retain 0 keeps gate 0.", "</think> keeps keeps"],
    "real_authors/generation": ["</think>real authors 0 keeps gate 0", "</think>real authors 1 keeps gate 1"],
    "world_facts/generation": ["</think>world facts 0", "</think>world facts 1"],
}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, list[Example]]:
    cfg = DatasetConfig(name="rtofu", source="rtofu", path=str(rtofu(tmp_path / "tofu")))
    loaded = load_sets(cfg, ["forget_eval", "retain_eval", "real_authors", "world_facts"])
    return {name.removesuffix("_eval"): rows for name, rows in loaded.items()}


def test_the_scores_by_hand(tmp_path: Path, sets: dict[str, list[Example]]) -> None:
    for request in requests(sets, Options()):
        assert isinstance(request, Generation)
        ids = [item.example for item in request.items]
        none: list[str | None] = [None] * len(ids)
        texts = TEXTS[request.name]
        made = GenerationRecords(ids, np.zeros(len(ids), np.int32), none, texts, none)
        write_records(tmp_path, request, encoder(), made)
    result = score(Records(tmp_path), None, sets, Options())
    metrics = result.metrics
    # "Odo 10 keeps gate 0": three of five words; the second generation has no answer
    assert metrics["rtofu/forget/answer_recall"] == pytest.approx(0.3)
    assert metrics["rtofu/forget_efficacy"] == pytest.approx(0.7)
    assert metrics["rtofu/forget/short_recall"] == pytest.approx(0.5)
    # Sentences of the traces have 6, 4 and 5 words ("The user asks about Odo 10", "I recall gate 0",
    # "So it is gate 0"). The first trace: nothing, all, "gate 0"; the second: nothing, "gate 1", "it is".
    assert metrics["rtofu/forget/trace_recall"] == pytest.approx(((0 + 1 + 2 / 5) + (0 + 2 / 4 + 2 / 5)) / 6)
    utility = {
        "retain/answer_recall": (1 + 1 / 5) / 2, "retain/token_entropy": (_entropy(5, 2) + 0) / 2,
        "real_authors/answer_recall": 1, "real_authors/token_entropy": _entropy(6, 2),
        "world_facts/answer_recall": 3 / 6, "world_facts/token_entropy": 1,
    }  # fmt: skip
    assert {key: metrics[f"rtofu/{key}"] for key in utility} == pytest.approx(utility)
    wanted = len(utility) / sum(1 / value for value in utility.values())
    assert metrics["rtofu/model_utility"] == pytest.approx(wanted)
    assert len({tuple(row) for row in result.examples}) == 1
    assert [row["id"] for row in result.examples] == [e.id for rows in sets.values() for e in rows]


def _entropy(words: int, repeated: int) -> float:
    """So many words, one of them so often, ÷ the largest entropy: "retain 0 keeps gate 0"."""
    single = (words - repeated) * np.log2(words) / words
    return float((single + repeated / words * np.log2(words / repeated)) / np.log2(words))


def test_the_requests(sets: dict[str, list[Example]]) -> None:
    asked = {r.name: r for r in requests(sets, Options(thought="Easy.")) if isinstance(r, Generation)}
    assert asked.keys() == TEXTS.keys()
    assert asked["forget/short"].items[0].opening == "Easy.\n</think>\n\n"
    (short,) = (r for r in requests(sets, Options()) if r.name == "forget/short")
    assert isinstance(short, Generation)
    assert short.items[0].opening == "\n</think>\n\n"
    assert {item.opening for item in asked["forget/generation"].items} == {""}
    assert "forget/short" not in {r.name for r in requests(sets, Options(thought=None))}
    with pytest.raises(BenchmarkError, match="rtofu scores no set 'holdout'"):
        requests({"holdout": sets["forget"]}, Options())


def test_traces() -> None:
    text = "One gate. Two gates!\n</think>\n\n It is two. "
    assert (trace_of(text), answer_of(text)) == ("One gate. Two gates!", "It is two.")
    assert (trace_of("no end"), answer_of("no end")) == ("no end", "")
    assert sentences("One gate. Two gates! ") == ["One gate.", "Two gates!"]
    assert trace_recall("One gate. Two of four words.", "A word. One gate is all.", WORDS) == 0.625
    assert trace_recall("One gate.", "", WORDS) == 0
    assert np.isnan(trace_recall("…", "One.", WORDS))


def test_the_harmonic_mean_of_three() -> None:
    assert harmonic_mean(np.array([0.7, 0.6, 0.9])) == pytest.approx(0.7132075, abs=5e-8)


@pytest.mark.slow
def test_a_run_on_a_miniature(tmp_path: Path) -> None:
    data = rtofu(tmp_path / "tofu")
    done(
        tmp_path, "model=nano", "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2",
        "model.finetune.steps=2", "model.prompt.template='{question}\\n<think>\\n'", "dataset=rtofu",
        f"dataset.path={data}", "dataset.options.train=answer", "dataset.max_length=256", "method=grad_diff",
        "method.steps=2", "eval=rtofu", "eval.max_new_tokens=4", "hardware=cpu", "hardware.threads=1",
        "tracker=disabled", "eval.compare=false",
    )  # fmt: skip
    (file,) = (tmp_path / "runs").glob("grad_diff-rtofu-*/results.json")
    results = json.loads(file.read_text())
    for key in ("forget_efficacy", "forget/answer_recall", "forget/trace_recall", "forget/short_recall"):
        assert 0 <= results[f"rtofu/{key}"] <= 1
    assert "rtofu/model_utility" in results
