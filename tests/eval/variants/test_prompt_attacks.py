"""Vectors and tokens that are searched after the prompt: where they go, losses, gradients, candidates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from eval import variants
from eval.collection.live_model import Live
from eval.variants._prompt_search import Halves, Search, Slots, embedded, halves, plain_tokens
from eval.variants.soft_prompt import signed_step
from eval.variants.token_prompt import candidates, promising
from tests.eval import eval_fixtures
from tests.eval.variants.test_variants import CONFIG
from tests.eval.variants.workbench import bench, llama
from tests.tolerance import PASS, approx, assert_close
from unlearn import interventions
from unlearn.config import EvalConfig, HardwareConfig
from unlearn.data.batching import collate
from unlearn.data.example import Example
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.passes.forward import forward

Build = Callable[[str], PreTrainedModel]
MARKS = [11, 5, 7, 9]
TOKENS = [20, 21, 22, 23]


def sequence(prompt: list[int], answer: list[int], after: list[int]) -> TokenSequence:
    return TokenSequence(np.array([*prompt, *answer]), len(prompt), ended=True).with_suffix(after)


PAIRS = [([3, 4], [30, 31, 32]), ([3, 4], [33, 34]), ([11, 5, 7, 6, 8], [35, 9, 36, 1])]


# -- where they go ---------------------------------------------------------------------------------------


def test_a_suffix_stands_between_prompt_and_answer() -> None:
    made = TokenSequence(np.array([1, 2, 3, 4]), 2, ended=True).with_suffix([8, 9])
    assert (made.ids.tolist(), made.answer_start, made.ended) == ([1, 2, 8, 9, 3, 4], 4, True)
    cut = TokenSequence(np.array([1, 2, 3, 4]), 2, ended=True).with_suffix([8, 9], 5)
    assert (cut.ids.tolist(), cut.ended) == ([1, 2, 8, 9, 3], False)


def test_vectors_that_are_embeddings_give_what_their_tokens_give(family: str, tiny_model: Build) -> None:
    model = tiny_model(family)
    tokens = collate([sequence(*pair, TOKENS) for pair in PAIRS])
    with torch.no_grad():
        expected = forward(model, tokens).logp
        slots = Slots(model, MARKS, embedded(model, TOKENS))
        assert_close(forward(model, collate([sequence(*pair, MARKS) for pair in PAIRS])).logp, expected)
        slots.remove()
        without = forward(model, collate([sequence(*pair, MARKS) for pair in PAIRS])).logp
    assert (without - expected).abs().max() > 0.01


def test_every_run_of_a_row_is_replaced_and_nothing_else(tiny_model: Build) -> None:
    model = tiny_model("llama")
    slots = Slots(model, MARKS, torch.ones(4, 32))
    ids = torch.tensor([[3, *MARKS, 8, *MARKS], [MARKS[0], *MARKS[:3], 2, 2, 2, 2, 2, 2]])
    made = model.get_input_embeddings()(ids)
    slots.remove()
    replaced = (made == 1).all(-1)
    assert replaced.tolist() == [[False, *[True] * 4, False, *[True] * 4], [False] * 10]
    assert torch.equal(made[~replaced], model.get_input_embeddings()(ids)[~replaced])


def test_the_second_model_of_a_contrast_gets_the_vectors_too(tiny_model: Build) -> None:
    model, second = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        second.get_output_embeddings().weight.neg_()
    interventions.make({"name": "contrast"}, hidden_size=32, layers=2, reinforced=second).attach(model)
    with torch.no_grad():
        expected = forward(model, collate([sequence(*pair, TOKENS) for pair in PAIRS])).logp
        slots = Slots(model, MARKS, embedded(model, TOKENS))
        marked = collate([sequence(*pair, MARKS) for pair in PAIRS])
        assert_close(forward(model, marked).logp, expected, terms=PASS)
        slots.remove()
        assert (forward(model, marked).logp - expected).abs().max() > 0.01


def test_an_opening_is_searched_for_in_place_of_the_answers(tmp_path: Path) -> None:
    work = bench(tmp_path)
    rows = work.sets["forget_eval"][:2]
    search = Search.of(work, llama(), rows, "Sure, it is")
    for made, example in zip(search.sequences, rows, strict=True):
        (begun,) = work.encoder.prompts([str(example.question)], ["Sure, it is"])
        assert (made.ids.tolist(), made.ended) == (begun, False)


def test_so_do_rows_that_share_a_prompt_and_generations(tmp_path: Path) -> None:
    model, encoder = eval_fixtures.model(), eval_fixtures.encoder()
    rows = eval_fixtures.examples("forget")[:4]
    pairs = [(e.question, answer) for e in rows for answer in (e.answer, *e.perturbed_answers)]
    openings = ["", "It is ", "", "Who "]

    def results(after: list[int]) -> tuple[Any, Any]:
        code = encoder.followed_by(after)
        live = Live(model, code, tmp_path, max_rows=3)
        read = live.read(code.pairs(pairs))["logp"].values
        assert live.shares_prompts
        prompts = code.prompts([str(e.question) for e in rows], openings)
        return read, live.answers(prompts, max_new_tokens=5)

    logp, texts = results(TOKENS)
    slots = Slots(model, MARKS, embedded(model, TOKENS))
    replaced = results(MARKS)
    assert_close(replaced[0], logp, terms=PASS)
    assert replaced[1] == texts
    slots.remove()
    assert results(MARKS)[1] != texts


# -- halves ----------------------------------------------------------------------------------------------


def test_questions_are_divided_by_their_ids(tmp_path: Path) -> None:
    work = bench(tmp_path)
    rows = work.sets["forget_eval"]

    def divided(forget: list[Example], reported: list[Example] | None = None) -> Halves:
        sets = {**work.sets, "forget_eval": forget}
        shown = forget if reported is None else reported
        return halves(work.config, sets, {**sets, "forget_eval": shown}, "soft_prompt")

    first = divided(rows)
    searched = {e.id for e in first.searched}
    assert len(searched) == len(rows) // 2
    assert searched | {e.id for e in first.scored["forget_eval"]} == {e.id for e in rows}
    assert not searched & {e.id for e in first.scored["forget_eval"]}
    assert {e.id for e in divided(rows[::-1]).searched} == searched
    # The same question under another id, here with another answer, is in the half of the first.
    other = replace(first.searched[0], id="zzz", answer="Another.")
    assert {e.id for e in divided([*rows, other]).searched} == searched | {"zzz"}
    # What is not reported is searched on all the same, and not scored.
    of_reported = divided(rows, rows[:4])
    assert of_reported.searched == first.searched
    assert of_reported.scored["forget_eval"] == [e for e in rows[:4] if e.id not in searched]
    # A set whose reported questions were all searched on is not scored.
    spent = [e for e in rows if e.id in searched][:1]
    config = work.config.model_copy(update={"eval": EvalConfig(benchmarks={"tofu": {}, "rwku": {}})})
    probes = {**work.sets, "forget_eval": rows, "forget_level1": spent}
    assert "forget_level1" not in halves(config, probes, probes, "soft_prompt").scored
    # A text without a question is neither searched on nor scored.
    texts = [*rows[:2], Example("text", "A plain text.")]
    assert len(divided(texts).scored["forget_eval"]) == 1
    with pytest.raises(UserError, match=r"eval\.variants\.soft_prompt: the forget sets have 1 questions"):
        divided(rows[:1])


# -- losses and gradients --------------------------------------------------------------------------------


def plain_loss(model: Any, vectors: torch.Tensor) -> torch.Tensor:
    """The mean NLL of the answers' tokens with the vectors after the prompts, one example at a time."""
    losses = []
    for prompt, answer in PAIRS:
        ids = torch.tensor([*prompt, *answer])
        rows = model.get_input_embeddings()(ids)
        inputs = torch.cat([rows[: len(prompt)], vectors, rows[len(prompt) :]])[None]
        logits = model(inputs_embeds=inputs).logits[0, len(prompt) + len(vectors) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none"))
    return torch.cat(losses).mean()


def search_of(model: Any, world: World | None = None) -> Search:
    rows = [sequence(*pair, []) for pair in PAIRS]
    hardware = HardwareConfig(micro_tokens=16, eval_tokens=24)  # more than one forward
    return Search(model, rows, world or World(), hardware)


def test_gradient_and_losses_are_those_of_a_plain_model(tiny_model: Build) -> None:
    model: Any = tiny_model("llama").requires_grad_(False)
    vectors = embedded(model, TOKENS)
    leaf = vectors.clone().requires_grad_()
    expected = plain_loss(model, leaf)
    (gradient,) = torch.autograd.grad(expected, leaf)
    slots = Slots(model, MARKS, vectors)
    loss, found = search_of(model).gradient(slots, [0, 1, 2])
    assert loss == approx(expected.item(), terms=PASS)
    assert_close(found, gradient, terms=PASS)
    assert search_of(model).loss(MARKS) == approx(expected.item(), terms=PASS)
    slots.remove()
    tried = np.array([TOKENS, MARKS])
    losses = search_of(model).losses(tried, [0, 1, 2])
    assert losses.tolist() == approx(
        [plain_loss(model, embedded(model, tokens)).item() for tokens in (TOKENS, MARKS)], terms=PASS
    )


def test_the_gradient_is_the_same_bits_on_two_processes(tiny_model: Build) -> None:
    model: Any = tiny_model("llama").requires_grad_(False)
    slots = Slots(model, MARKS, embedded(model, TOKENS))
    parts: list[list[Any]] = []

    class Halved(World):
        """One of two processes, whose parts are gathered by hand."""

        def gather(self, part: list[Any]) -> list[Any]:
            parts.append(part)
            return [each for own in parts for each in own] if self.rank else part

        def mine(self, bins: Sequence[Sequence[list[int]]]) -> Iterator[list[int]]:
            yield from (part for part in bins[self.rank] if part)

        def sum(self, value: torch.Tensor) -> torch.Tensor:
            return value

    alone = search_of(model).gradient(slots, [0, 1, 2])
    for rank in (0, 1):
        together = search_of(model, Halved(rank, 2)).gradient(slots, [0, 1, 2])
    assert len(parts[0]) == 1
    assert len(parts[1]) >= 1
    assert together[0] == alone[0]
    assert torch.equal(together[1], alone[1])


def test_a_step_by_the_sign_by_hand() -> None:
    stepped = signed_step(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -1e-9, 0.0]), 0.25)
    assert stepped.tolist() == [0.75, 2.25, 3.0]


def test_what_promises_most_by_hand() -> None:
    # One place: products with the gradient (1, −1) are 1, −1, 0 and −3; the lowest first.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 2.0]])
    gradient = torch.tensor([[1.0, -1.0], [-1.0, 0.0]])
    assert promising(gradient, rows, 2).tolist() == [[3, 1], [2, 0]]
    assert promising(gradient, rows, 99).shape == (2, 4)


def test_candidates_differ_in_one_place_and_come_from_its_choices() -> None:
    tokens = np.array([1, 2, 3])
    choices = np.array([[10, 11], [20, 21], [30, 31]])
    tried = candidates(tokens, choices, 60, np.random.default_rng(0))
    assert tried.shape == (61, 3)
    assert tried[0].tolist() == [1, 2, 3]
    assert ((tried[1:] != tokens).sum(1) == 1).all()
    for place in range(3):
        assert set(tried[1:, place]) == {tokens[place], *choices[place]}
    assert tokens.tolist() == [1, 2, 3]


def test_special_tokens_are_no_candidates(tmp_path: Path) -> None:
    work, model = bench(tmp_path), llama()
    text = plain_tokens(model, work.encoder)
    assert not {*text.tolist()} & {*work.encoder.tokenizer.all_special_ids}
    assert len(text) == 300 - 5
    assert text.max() < len(embedded(model, range(300)))


# -- options, and whole attacks ----------------------------------------------------------------------------


def test_options_of_searches_are_checked() -> None:
    chosen: dict[str, Any] = {
        "soft_prompt": {"tokens": 1, "steps": [0], "step": 0, "batch": 0, "seed": -1, "opening": ""},
        "token_prompt": {"top": 0, "candidates": 0},
    }
    problems = "\n".join(variants.check(chosen, CONFIG))
    for words in ("tokens=1: give at least 4", "steps=[0]", "step=0.0", "batch=0", "seed=-1", "opening=''"):
        assert f"eval.variants.soft_prompt.{words}" in problems
    for words in ("top=0", "candidates=0"):
        assert f"eval.variants.token_prompt.{words}" in problems
    general = CONFIG.model_copy(update={"eval": EvalConfig(benchmarks={"general": {}})})
    (problem,) = variants.check({"soft_prompt": None}, general)
    assert "none of the benchmarks scores a forget set" in problem


KEY = "tofu/forget/probability"
SMALL = {"tokens": 4, "steps": [6], "batch": 2}


@pytest.mark.slow
def test_searched_prompts_raise_the_searched_answers_and_the_others_are_scored(tmp_path: Path) -> None:
    work = bench(tmp_path)
    soft = variants.measure("soft_prompt", work, {**SMALL, "step": 0.01})
    hard = variants.measure("token_prompt", work, {**SMALL, "top": 8, "candidates": 12})
    divided = halves(work.config, work.sets, work.sets, "soft_prompt")
    for name, metrics in (("soft_prompt", soft), ("token_prompt", hard)):
        assert metrics[f"{name}/6/loss"] < metrics[f"{name}/0/loss"]
        assert metrics[f"{name}/examples"] == 4
        assert 0 < metrics[f"{name}/6/{KEY}"] < 1
        assert not any("retain" in key for key in metrics)
        table = pq.read_table(tmp_path / "eval" / name / "6" / "tofu" / "examples.parquet")
        assert {*table["id"].to_pylist()} == {e.id for e in divided.scored["forget_eval"]}
    prompts = json.loads((tmp_path / "eval" / "token_prompt" / "prompts.json").read_text())
    assert set(prompts) == {"6"}
    assert len(prompts["6"]["tokens"]) == 4
    # The scored likelihoods are those of the plain model after these tokens.
    encoder = work.encoder.followed_by(prompts["6"]["tokens"])
    with torch.no_grad():
        means = [
            forward(llama(), collate(encoder.pairs([(e.question, e.answer)]))).logp.mean().exp().item()
            for e in divided.scored["forget_eval"]
        ]
    assert hard[f"token_prompt/6/{KEY}"] == approx(sum(means) / len(means), terms=PASS)
    adam = {**SMALL, "steps": [3], "optimizer": "adam", "step": 0.01}
    moved = variants.measure("soft_prompt", bench(tmp_path / "adam"), {**adam, "opening": "Sure, it is"})
    assert moved["soft_prompt/3/loss"] < moved["soft_prompt/0/loss"]
