"""The pass over the answer tokens against plain Hugging Face, float64 and autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from tests.tolerance import PASS, assert_close
from unlearn import interventions
from unlearn.data.batching import Batch, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.passes import forward as module
from unlearn.passes import token_logp as blocks
from unlearn.passes.forward import ForwardRequest, answer_logits, forward, read, record
from unlearn.passes.head import logits_are_plain
from unlearn.passes.token_logp import token_logp
from unlearn.passes.unpadded import runs_unpadded
from unlearn.training.frozen_outputs import head_of

Build = Callable[[str], PreTrainedModel]


def sequences() -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    shapes = [(9, 3), (5, 1), (14, 10), (2, 1)]
    return [TokenSequence(rng.integers(0, 97, length), start, True) for length, start in shapes]


def plain_inputs(rows: list[TokenSequence]) -> dict[str, Tensor]:
    """Return inputs as documented by transformers: ids, attention mask, labels with -100."""
    shape = (len(rows), max(len(s.ids) for s in rows))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, s in enumerate(rows):
        ids[row, : len(s.ids)] = torch.from_numpy(s.ids)
        mask[row, : len(s.ids)] = 1
        labels[row, s.answer_start : len(s.ids)] = torch.from_numpy(s.ids[s.answer_start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_loss_and_gradients_equal_plain_hugging_face(family: str, tiny_model: Build) -> None:
    model, rows = tiny_model(family), sequences()
    expected = model(**plain_inputs(rows)).loss
    expected.backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    loss = -forward(model, collate(rows)).logp.mean()
    loss.backward()

    assert loss.item() > 1.0
    assert_close(loss, expected, terms=PASS)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
    for name, p in model.named_parameters():
        assert_close(p.grad, wanted[name], terms=PASS, scale=largest, named=name)


def test_neither_padding_nor_other_rows_change_an_example(family: str, tiny_model: Build) -> None:
    model, rows = tiny_model(family), sequences()
    alone = [forward(model, collate([s])).logp for s in rows]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3]):
        for pad in (0, 96):
            found = forward(model, collate([rows[i] for i in order], pad_id=pad))
            wanted = torch.cat([alone[i] for i in order])
            assert_close(found.logp, wanted, terms=PASS)


def test_head_runs_on_the_answer_tokens_only(tiny_model: Build) -> None:
    model, seen = tiny_model("llama"), []
    head: Any = model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, out: seen.append((args[0].shape, out.shape)))
    batch = collate(sequences())
    assert answer_logits(model, batch).shape == (15, 97)  # 6 + 4 + 4 + 1 answer tokens
    assert seen == [((1, 15, 32), (1, 15, 97))]


def test_head_is_left_as_it_was_even_after_an_error(tiny_model: Build) -> None:
    model, batch = tiny_model("llama"), collate(sequences())
    before = model(batch.input_ids).logits
    broken = replace(batch, index=batch.index + 10**6)
    with pytest.raises((IndexError, RuntimeError)):
        forward(model, broken)
    assert torch.equal(model(batch.input_ids).logits, before)


def test_model_inside_a_wrapper(tiny_model: Build) -> None:
    class Engine(torch.nn.Module):  # as DeepSpeed's: callable, the model under `module`
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.module = inner

        def forward(self, **kwargs: Any) -> Any:
            return self.module(**kwargs)

    model, batch = tiny_model("llama"), collate(sequences())
    assert torch.equal(forward(Engine(model), batch).logp, forward(model, batch).logp)


@pytest.mark.parametrize("block", [1, 97 * 4, 1 << 24])
def test_record_against_float64(block: int, tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    model, batch = tiny_model("gpt2"), collate(sequences())
    logprob = answer_logits(model, batch).detach().double().log_softmax(-1)
    mean = (logprob.exp() * logprob).sum(-1)
    variance = (logprob.exp() * logprob.square()).sum(-1) - mean.square()

    found = record(model, batch)

    # One arg-max is put right on purpose, so that `correct` is not all False.
    right = replace(batch, labels=batch.labels.clone())
    right.labels[4] = logprob[4].argmax()
    assert record(model, right).correct[4]
    assert torch.equal(found.correct, logprob.argmax(-1) == batch.labels)
    wanted = logprob.gather(-1, batch.labels[:, None])[:, 0]
    for value, reference in ((found.logp, wanted), (found.mean, mean), (found.variance, variance)):
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert_close(value, reference, terms=PASS)
    assert found.lengths.tolist() == [6, 4, 4, 1]


@pytest.mark.parametrize("limit", [0, 41])
def test_logits_exist_a_budget_at_a_time(
    limit: int, family: str, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_model(family), collate(sequences())
    whole = record(model, batch)
    logits_are_plain(model)  # a call of its own, once
    made: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: made.append(out.numel()))
    monkeypatch.setattr(module, "_LOGITS", 4 * model.config.vocab_size)
    parts = record(model, batch, limit)
    assert torch.equal(parts.correct, whole.correct)
    for name in ("logp", "mean", "variance"):
        assert_close(getattr(parts, name), getattr(whole, name), terms=PASS)
    # One pass without positions, then four at a time of the 15 here, or of the 41 of another process.
    assert made[0] == 0
    assert len(made) == 1 + (11 if limit else 4)
    assert max(made) == 4 * model.config.vocab_size


class Fixed(torch.nn.Module):
    """A model that gives every token these logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.head = torch.nn.Identity()
        self.config = LlamaConfig(vocab_size=len(logits))
        self.logits = logits

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        logits = self.head(self.logits.expand(*input_ids.shape, len(self.logits)))
        return type("Output", (), {"logits": logits})()


def test_of_equally_likely_tokens_the_first_is_the_arg_max() -> None:
    statistics = record(
        Fixed(torch.tensor([0.0, 2.0, 2.0])), collate([TokenSequence(np.array([0, 1, 2, 0]), 1, True)])
    )
    assert statistics.correct.tolist() == [True, False, False]


def test_record_by_hand() -> None:
    # Two tokens of probability 3/4 and 1/4: the mean of log p is .75 ln .75 + .25 ln .25 = -0.5623351,
    # its variance .75 · .25 · (ln 3)² = 0.2263029.
    model = Fixed(torch.log(torch.tensor([0.75, 0.25])))
    statistics = record(model, collate([TokenSequence(np.array([0, 0, 1]), 1, True)]))
    assert_close(statistics.logp, torch.tensor([-0.2876821, -1.3862944]))
    assert statistics.correct.tolist() == [True, False]
    assert_close(statistics.mean, torch.full((2,), -0.5623351))
    assert_close(
        statistics.variance, torch.full((2,), 0.2263029), scale=0.5623351**2
    )  # a difference of squares


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("block", [1, 2 * 11, 1 << 24])
def test_token_logp_gradient_against_autograd(n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)  # 11 tokens: blocks of one row, of two, of all
    logits = 5 * torch.randn(n, 11, generator=torch.Generator().manual_seed(n))
    labels = torch.arange(n) * 2
    weights = torch.linspace(-1, 2, n)  # gradients of either sign, and one of zero for n = 4

    exact = logits.double().requires_grad_()
    wanted = exact.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    (wanted * weights.double()).sum().backward()

    logits.requires_grad_()
    found = token_logp(logits, labels)
    (found * weights).sum().backward()

    assert_close(found, wanted, terms=11)
    assert exact.grad is not None
    assert logits.grad is not None
    assert_close(logits.grad, exact.grad, terms=11, scale=float(logits.detach().abs().max()))


def test_token_logp_of_bf16_logits() -> None:
    exact = (5 * torch.randn(7, 33, generator=torch.Generator().manual_seed(0))).bfloat16()
    labels = torch.arange(7)
    reference = exact.double().requires_grad_()
    reference.log_softmax(-1)[torch.arange(7), labels].sum().backward()
    logits = exact.clone().requires_grad_()
    found = token_logp(logits, labels)
    found.sum().backward()
    assert found.dtype == torch.float32
    wanted = reference.log_softmax(-1)[torch.arange(7), labels]
    assert_close(found, wanted, terms=logits.shape[-1])  # computed in fp32, not in bf16
    assert logits.grad is not None
    assert reference.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    # Computed in fp32, and rounded once.
    half = torch.finfo(torch.bfloat16).eps / 2
    assert_close(logits.grad, reference.grad, dtype=torch.float32, terms=33, scale=20, rounded=half)


def test_very_sure_and_very_wrong_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]], requires_grad=True)
    found = token_logp(logits, torch.tensor([0, 2]))
    found.sum().backward()
    assert found.tolist() == [0.0, -2e4]
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, 0, 0], [-1, 0, 1]]


def test_kept_states_give_their_own_models_logits(family: str, tiny_model: Build) -> None:
    """Appended to the model's own logits and, where nothing follows the head, separately: the same bits."""
    model, other, batch = tiny_model(family), tiny_model(family), collate(sequences())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        wanted = answer_logits(other, batch)
    kept = {"ref_logits": (head_of(other), module.states(other, batch, batch.index, None))}
    asked = ForwardRequest(batch.index, batch.labels, logp=True, logits=True, states=kept)
    found = [read(model, batch, [asked])[0] for _ in range(2)]
    assert not torch.equal(found[0]["logits"], found[0]["ref_logits"])
    for each in found:
        assert_close(each["ref_logits"], wanted, terms=PASS)
        assert_close(each["logits"], answer_logits(model, batch), terms=PASS)
    for name, first in found[0].items():
        assert torch.equal(first, found[1][name]), name


@pytest.mark.parametrize("change", ["none", "new", "in place"])
def test_what_a_model_does_after_its_head_is_done_to_kept_states_too(change: str, tiny_model: Build) -> None:
    model, batch = tiny_model("llama"), collate(sequences())
    kept = {"ref_logits": (head_of(model), module.states(model, batch, batch.index, None))}
    asked = ForwardRequest(batch.index, batch.labels, logits=True, states=kept)
    head: Any = model.get_output_embeddings()
    joined: list[bool] = []

    def after(_: Any, __: Any, output: Any) -> Any:
        joined.append(output.logits.shape[1] > len(batch.index))
        if change != "none":
            output.logits = output.logits.mul_(3.0) if change == "in place" else output.logits * 3.0
        return output

    model.register_forward_hook(after)
    with torch.no_grad():
        plain = head(module.states(model, batch, batch.index, None))
    for _ in range(3):
        found = read(model, batch, [asked])[0]
        assert_close(found["ref_logits"], plain * (1.0 if change == "none" else 3.0), terms=PASS)
        assert_close(found["ref_logits"], found["logits"], terms=PASS)
    assert joined == [False, False, *[change != "none"] * 3]  # first the states, then a token as a trial


@pytest.mark.parametrize("wanted", [{"logits": True}, {"logp": True}, {"logits": True, "logp": True}])
def test_the_first_read_of_any_kind_asks_how_the_head_is(
    wanted: dict[str, Any], family: str, tiny_model: Build
) -> None:
    """A call of the model is a collective at ZeRO 3, and processes have micro-batches of other groups."""
    model, batch = tiny_model(family), collate(sequences())
    assert calls_of_two_reads(model, batch, wanted) == [2, 3]


@pytest.mark.parametrize("kept", [False, True])
def test_so_does_that_of_a_model_with_edits(kept: bool, tiny_model: Build) -> None:
    """Of one process the first micro-batch may have kept states, which of another has not."""
    model, batch = tiny_model("llama"), collate(sequences())
    size, layers = model.config.hidden_size, model.config.num_hidden_layers
    states = {"ref_logits": (head_of(model), torch.ones(len(batch.index), size))} if kept else {}
    interventions.make({"name": "grun", "rank": 2}, hidden_size=size, layers=layers).attach(model)
    assert calls_of_two_reads(model, batch, {"logp": True, "states": states}) == [2, 3]


def calls_of_two_reads(model: PreTrainedModel, batch: Batch, wanted: dict[str, Any]) -> list[int]:
    """Count the model's calls up to the end of the first and of the second read."""
    runs_unpadded(model)  # a trial of its own, once
    calls: list[Any] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    read(model, batch, [ForwardRequest(batch.index, batch.labels, **wanted)])
    first = len(calls)
    read(model, batch, [ForwardRequest(batch.index, batch.labels, logp=True)])
    return [first, len(calls)]
