"""The prefix strength of a tiny model: one pass against decoding from every prefix, and the released code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from eval.benchmark import find, options_of
from eval.benchmarks.prefix import Options, measure
from eval.collection.live_model import Live
from eval.evaluate import evaluate
from eval.metrics.prefix import common_subsequence
from tests.eval.eval_fixtures import encoder, examples, model
from unlearn.data.example import Example
from unlearn.errors import ConfigError

CODE = encoder()
STEPS = 30


@pytest.fixture(scope="module")
def learned():
    """A model that was trained on some answers until it knows parts of them."""
    taught = model(0).train()
    sequences = CODE.pairs([(e.question, e.answer) for e in examples("forget")[:3]])
    optimizer = torch.optim.AdamW(taught.parameters(), 5e-3)
    for _ in range(STEPS):
        for s in sequences:
            ids = torch.from_numpy(s.ids)[None]
            labels = ids.clone()
            labels[:, : s.answer_start] = -100
            taught(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return taught.eval()


def live(taught, directory) -> Live:
    return Live(taught, CODE, directory, max_tokens=128, max_rows=4)


def some() -> list[Example]:
    unknown = Example("forget/x", "zq xw", "What?")
    return [replace(e, paraphrased_question=f"{e.question} Hm?") for e in (*examples("forget")[:4], unknown)]


@torch.no_grad()
def decoded(taught, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding by hand, one token at a time."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count and tokens[-1] != CODE.end_id:
        tokens.append(int(taught(torch.tensor([tokens])).logits[0, -1].argmax()))
    return [token for token in tokens[len(prompt) :] if token != CODE.end_id]


@pytest.mark.slow
def test_strict_strengths_equal_decoding_from_every_prefix(learned, tmp_path):
    result = measure(live(learned, tmp_path), {"forget": some()}, Options(modes=("exact", "perturb")))
    seen = set()
    for example, row in zip(some(), result.examples, strict=True):
        for mode, question in (("exact", example.question), ("perturb", example.paraphrased_question)):
            (sequence,) = CODE.pairs([(question, example.answer)])
            ids, left = sequence.ids[:-1].tolist(), sequence.answer_start
            every = [m for m in range(left, len(ids)) if decoded(learned, ids[:m], len(ids) - m) == ids[m:]]
            shortest = min(every, default=len(ids))
            assert every == list(range(shortest, len(ids)))  # monotone
            assert row[mode] == 1 - (shortest - left) / (len(ids) - left)
            seen.add(row[mode])
    assert 0 in seen
    assert seen - {0, 1}  # some in between
    mean = sum(row["exact"] for row in result.examples) / 5
    assert result.metrics["prefix/forget/exact"] == pytest.approx(mean)


@pytest.mark.slow
def test_similar_continuations_are_searched(learned, tmp_path):
    result = measure(live(learned, tmp_path), {"forget": some()}, Options(modes=("similar",)))
    for example, row in zip(some(), result.examples, strict=True):
        (sequence,) = CODE.pairs([(example.question, example.answer)])
        ids, left = sequence.ids[:-1].tolist(), sequence.answer_start
        low, high, last = left, len(ids), None
        while (middle := (low + high) // 2) != last:
            rest = ids[middle:]
            common = common_subsequence(decoded(learned, ids[:middle], len(rest)), rest)
            low, high = (low, middle) if common >= len(rest) / 2 else (middle, high)
            last = middle
        assert row["similar"] == 1 - (high - left) / (len(ids) - left)


def test_a_model_that_stops_at_once_has_no_strength_but_in_the_released_code(tmp_path):
    silent = model(0)
    silent.lm_head = torch.nn.Linear(32, 400)
    with torch.no_grad():
        silent.lm_head.weight.zero_()
        silent.lm_head.bias.zero_()[CODE.end_id] = 1
    sets = {"forget": some()[:3]}
    strict = measure(live(silent, tmp_path), sets, Options())
    assert strict.metrics == {f"prefix/forget/{mode}": 0 for mode in ("exact", "perturb", "similar")}
    released = measure(live(silent, tmp_path), sets, Options(strict=False))
    assert released.metrics == dict.fromkeys(strict.metrics, 1.0)


@pytest.mark.slow
def test_the_released_search_begins_inside_its_template(learned, tmp_path):
    example = some()[0]
    (row,) = measure(
        live(learned, tmp_path), {"forget": [example]}, Options(modes=("exact",), strict=False)
    ).examples

    def tokens(text: Any) -> list[int]:
        return list(CODE.tokenizer(text)["input_ids"])

    ids = tokens(f"### Question: {example.question}\n ### Answer: {example.answer}")
    left = len(tokens(example.question))
    low, high, last = left, len(ids), None
    while (middle := (low + high) // 2) != last:
        prompt = tokens(CODE.tokenizer.decode(ids[:middle]))
        whole = [*prompt, *decoded(learned, prompt, 200 - len(prompt))]
        again = tokens(CODE.tokenizer.decode(whole))[middle : len(ids)]
        match = again == ids[middle:][: len(again)]
        low, high = (low, middle) if match else (middle, high)
        last = middle
    assert row["exact"] == 1 - (high - left) / (len(ids) - left)
    assert left < len(tokens(f"### Question: {example.question}\n ### Answer: "))


def test_a_model_that_gives_nan_has_no_strength(tmp_path):
    broken = model(0)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    options = Options(modes=("exact", "perturb"))
    metrics = measure(live(broken, tmp_path), {"forget": some()[:2]}, options).metrics
    assert math.isnan(metrics["prefix/forget/exact"])
    assert metrics["prefix/forget/exact/missing"] == 2


def test_a_question_without_room_is_left_out_and_named(tmp_path):
    short = replace(CODE, max_length=64)
    rows = [some()[0], replace(some()[1], paraphrased_question="Why? " * 64)]
    made = Live(model(0), short, tmp_path, max_tokens=128, max_rows=4)
    result = measure(made, {"forget": rows}, Options(modes=("exact", "perturb")))
    assert result.metrics["prefix/forget/perturb/missing"] == 1
    assert "prefix/forget/exact/missing" not in result.metrics
    (sentence,) = result.problems
    assert sentence.startswith(f"forget/perturb, {rows[1].id}: ")


def test_what_was_measured_of_other_texts_is_not_read_again(tmp_path):
    def exact(rows: list[Any]) -> dict[str, float]:
        given = {"modes": ["exact"]}
        return evaluate(model(0), CODE, "prefix", {"forget_eval": rows}, tmp_path, options=given)

    first, mark = some()[:2], tmp_path / "prefix" / "measured.json"
    exact(first)
    before = mark.read_text()
    exact([replace(row, answer=f"{row.answer} And more.") for row in first])  # the same ids
    assert mark.read_text() != before


def test_sets_and_files(tmp_path):
    plain = examples("retain")[:2]
    metrics = evaluate(
        model(0), CODE, "prefix", {"forget_eval": some()[:2], "retain_eval": plain}, tmp_path,
        options={"modes": ["exact", "perturb"]},
    )  # fmt: skip
    assert list(metrics) == ["prefix/forget/exact", "prefix/forget/perturb", "prefix/retain/exact"]
    assert (tmp_path / "prefix/results.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modes": []}, "at most once"),
        ({"modes": ["exact", "exact"]}, "at most once"),
        ({"modes": ["x"]}, "x"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ConfigError, match=words):
        options_of(find("prefix"), options, "prefix")
