from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from eval.benchmarks.tofu import Options, requests
from eval.collection.collect import collect
from eval.collection.live_model import Live
from eval.collection.records import Records, record_path
from eval.collection.requests import Answer, Generation, Likelihood, Prompt
from eval.suite import Scoring, _check_keys
from tests.eval.eval_fixtures import encoder, examples, model, plain
from tests.file_limit import no_files_above
from tests.rows import rows_in_pass
from tests.tolerance import PASS, assert_close
from unlearn.config import HardwareConfig
from unlearn.distributed import ALONE
from unlearn.errors import UserError
from unlearn.files import NoRoom
from unlearn.passes.unpadded import runs_unpadded

LIMIT = 40


def plan():
    return requests({"forget": examples("forget")}, Options(max_new_tokens=LIMIT))


def run(directory, net=None, plan_=None, max_tokens=512, max_rows=4):
    live = Live(net or model(), encoder(), directory, max_tokens=max_tokens, max_rows=max_rows)
    collect(live, plan_ or plan())
    return Records(directory)


class Rows:
    """Counts the rows and calls that reach a model, by length of what comes in."""

    def __init__(self, net):
        self.rows = self.calls = 0
        runs_unpadded(net)  # the trial is not counted
        net.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _, args, kwargs):
        self.rows += rows_in_pass() or len(kwargs["input_ids"])
        self.calls += 1


def test_likelihoods_are_those_of_one_plain_forward_per_answer(tmp_path):
    net, code = model(), encoder()
    found = run(tmp_path, net).likelihood("forget/perturbed")
    items = next(r for r in plan() if r.name == "forget/perturbed").items
    assert list(zip(found.example, found.slot.tolist(), strict=True)) == [(i.example, i.slot) for i in items]
    net.eval()
    for i, item in enumerate(items):
        (sequence,) = code.pairs([(item.question, item.answer)])
        ids = torch.from_numpy(sequence.ids)[None]
        with torch.no_grad():
            logprob = net(ids).logits[0, :-1].log_softmax(-1)
        part = slice(sequence.answer_start - 1, None)
        wanted = ids[0, sequence.answer_start :]
        assert wanted[-1] == code.end_id
        expected = logprob[part].gather(-1, wanted[:, None])[:, 0]
        assert_close(found.logp[i], expected, terms=PASS)
        np.testing.assert_array_equal(found.correct[i], logprob[part].argmax(-1) == wanted)
        mean = (logprob[part].exp() * logprob[part]).sum(-1)
        assert_close(found.mean[i], mean, terms=PASS)
        assert found.ended[i]


def test_generations_are_those_of_a_plain_greedy_loop(tmp_path):
    net, code = model(seed=3), encoder()
    found = run(tmp_path, net).generation("forget/generation")
    net.eval()
    lengths = []
    for example, text in zip(examples("forget"), found.text, strict=True):
        (ids,) = code.prompts([example.question or ""])
        start = len(ids)
        while len(ids) < start + LIMIT:
            with torch.no_grad():
                token = int(net(torch.tensor([ids])).logits[0, -1].argmax())
            if token == code.end_id:
                break
            ids.append(token)
        lengths.append(len(ids) - start)
        assert text == str(code.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()
    # The model was chosen so that some end in the first round and some go on to the limit.
    assert min(lengths) < 32
    assert max(lengths) == LIMIT


@pytest.mark.slow
def test_a_cache_of_fixed_size_changes_nothing(tmp_path):
    net, code = model(seed=3), encoder()
    prompts = code.prompts([e.question or "" for e in examples("forget")])
    found = [
        Live(net, code, tmp_path, max_rows=4, static_cache=static).answers(prompts, max_new_tokens=LIMIT)
        for static in (False, True)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_models_own_sampling_settings_change_nothing(tmp_path):
    net = model(seed=3)
    before = plain(run(tmp_path / "a", net).generation("forget/generation"))
    net.generation_config.update(
        do_sample=True, temperature=5.0, top_p=0.5, repetition_penalty=3.0, no_repeat_ngram_size=1
    )
    assert plain(run(tmp_path / "b", net).generation("forget/generation")) == before


def test_a_models_own_end_tokens_end_a_generation_too(tmp_path):
    net = model(seed=3)
    first = run(tmp_path / "a", net).generation("forget/generation").text
    net.generation_config.eos_token_id = list(range(2, 400))
    assert run(tmp_path / "b", net).generation("forget/generation").text == [""] * len(first)


@pytest.mark.slow
def test_batch_sizes_change_nothing(tmp_path):
    one = run(tmp_path / "a", model(seed=3), max_tokens=1, max_rows=1)
    many = run(tmp_path / "b", model(seed=3), max_tokens=10_000, max_rows=100)
    for name in ("forget/answer", "forget/paraphrased", "forget/perturbed"):
        for column in ("logp", "mean", "variance"):
            mine, other = (getattr(records.likelihood(name), column) for records in (one, many))
            assert_close(mine.values, other.values, terms=PASS)
    assert plain(one.generation("forget/generation")) == plain(many.generation("forget/generation"))


def test_what_two_requests_share_meets_the_model_once(tmp_path):
    net = model()
    same = [Answer(e.id, 0, e.question, e.answer) for e in examples("forget")]
    twice = [Answer(f"copy/{i.example}", 0, i.question, i.answer) for i in same]
    more = [Answer("plain", 0, None, "Oslo lies by the sea.")]
    counted = Rows(net)
    requests = [Likelihood("a", tuple(same)), Likelihood("b", tuple(twice + more))]
    found = run(tmp_path, net, requests)
    assert counted.rows == len(same) + 1
    a, b = found.likelihood("a"), found.likelihood("b")
    np.testing.assert_array_equal(a.logp.values, b.logp.values[: len(a.logp.values)])
    # A plain text: all tokens but the first, and the end token.
    assert len(b.logp[len(same)]) == len(encoder().tokenizer("Oslo lies by the sea.")["input_ids"])

    counted = Rows(other := model())
    prompts = tuple(Prompt(e.id, e.question or "") for e in examples("forget"))
    run(tmp_path, other, [Generation(name, prompts, 1) for name in ("c", "d")], max_rows=3)
    assert counted.rows == len(prompts)
    assert counted.calls == math.ceil(len(prompts) / 3)


@pytest.mark.parametrize("lost", ["forget/perturbed", "forget/answer"])
def test_a_second_evaluation_runs_only_what_is_not_on_disk(tmp_path, lost):
    before = run(tmp_path).likelihood(lost)
    counted = Rows(net := model())
    run(tmp_path, net)
    assert counted.rows == 0
    record_path(tmp_path, lost).unlink()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    after = run(tmp_path, net).likelihood(lost)
    # Both wrong answers to a question are in one row. That the model can do so was tried on the first such
    # row, together and one by one; a right answer has its question for itself.
    assert counted.rows == len(set(before.example)) + (1 + 2) * (lost == "forget/perturbed")
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert_close(after.logp.values, before.logp.values, terms=PASS)


def test_a_longer_limit_makes_new_generations_only(tmp_path):
    run(tmp_path)
    counted = Rows(net := model())
    run(tmp_path, net, requests({"forget": examples("forget")}, Options(max_new_tokens=1)))
    assert counted.rows == len(examples("forget"))


def test_the_model_the_tokenizer_and_the_random_numbers_are_left_as_they_were(tmp_path):
    net, code = model(), encoder()
    net.train()
    net.model.layers[0].eval()
    modes = [module.training for module in net.modules()]
    settings = net.generation_config.to_dict()
    state, side = torch.get_rng_state(), code.tokenizer.padding_side
    collect(Live(net, code, tmp_path, max_tokens=512, max_rows=4, progress=True), plan())
    assert [module.training for module in net.modules()] == modes
    assert net.generation_config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), state)
    assert code.tokenizer.padding_side == side
    assert not net.get_output_embeddings()._forward_pre_hooks


def test_a_full_disk_ends_the_evaluation(tmp_path):
    """It is noticed on the main process alone, which must not go on to what the others do not do."""
    score = Scoring(
        {"tofu": {"generation": False, "mia": False}, "sampling": {}},
        {"forget_eval": examples("forget")}, encoder(), tmp_path, ALONE, HardwareConfig(),
    )  # fmt: skip
    with no_files_above(2048), pytest.raises(NoRoom):
        score(model(), "", ["forget"])
    assert not (tmp_path / "sampling").exists()


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"a/x": 0.5}, "a/x is one of another benchmark, too"),
        ({"b/x": "high"}, "b/x is 'high', but must be a number"),
    ],
)
def test_metrics_are_numbers_of_one_benchmark(own, words):
    _check_keys("b", {"b/x": 0.5}, {"a/x": 1.0})
    with pytest.raises(UserError, match=words):
        _check_keys("b", own, {"a/x": 1.0})


def test_passes_with_a_backward_have_the_portion_of_training(tmp_path):
    """Gradient norms keep what a training keeps, which may be a hundred times what a likelihood takes."""
    net, widest = model(), {True: 0, False: 0}

    def watch(_: Any, args: Any, named: Any) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        backward = torch.is_grad_enabled()
        widest[backward] = max(widest[backward], ids.numel())

    net.model.register_forward_pre_hook(watch, with_kwargs=True)
    hardware = HardwareConfig(micro_tokens=200, eval_tokens=2000)
    sets = {"forget_eval": examples("forget"), "holdout": examples("holdout")}
    for each in (hardware, hardware.model_copy(update={"gradient_tokens": 80})):
        widest[True] = 0
        folder = tmp_path / str(each.backward_tokens)
        Scoring({"tofu": {"generation": False}}, sets, encoder(), folder, ALONE, each)(
            net, "", ["forget", "holdout"]
        )
        assert 0.5 * each.backward_tokens < widest[True] <= each.backward_tokens
    assert widest[False] > 400
