"""Gradient norms of single examples against one backward per example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from eval.collection.live_model import Live
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, assert_close
from tests.unlearn.passes.per_example.gradient_models import CONFIGS, adapted, made, sequences
from unlearn.data.batching import collate
from unlearn.passes.per_example.capture import captured
from unlearn.passes.per_example.gradient_norms import by_gram_matrices, by_sums, cheaper, gradient_norms
from unlearn.passes.per_example.parameter_uses import Outer


def plain(model, some):
    """Return norms by one example at a time, without padding, hooks or a head on chosen positions."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for s in some:
        ids = torch.from_numpy(s.ids)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, s.answer_start - 1 : -1]
        loss = nn.functional.cross_entropy(logits, ids[0, s.answer_start :])
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        norms = [torch.zeros((), dtype=loss.dtype) if g is None else g.norm() for g in grads]
        found.append(torch.stack(norms).mean())
    return torch.stack(found)


def close(found, expected, **options):
    """Compare each norm by its own size: a sum of squares has no cancellation."""
    assert found.dtype == torch.float32
    assert_close(found, expected, each=True, **({"terms": PASS} | options))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name):
    some = sequences()
    for dtype, terms in ((torch.float32, PASS), (torch.float64, 1)):  # that is given in fp32
        model = made(name, dtype)
        close(gradient_norms(model, collate(some)), plain(model, some), terms=terms)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_family_needs_a_pass_per_example(name):
    model = made(name)
    found = captured(model, collate(sequences()))
    assert found.missed == []
    assert len(found.sites) == len(list(model.parameters()))


def test_tied_weights_have_both_uses():
    model = made("llama tied")
    sites = captured(model, collate(sequences())).sites
    uses = {id(of[0].parameter): len(of) for of in sites}
    assert uses.pop(id(model.lm_head.weight)) == 2
    assert set(uses.values()) == {1}


def test_batches_do_not_matter():
    some, model = sequences(), made("opt")
    whole = gradient_norms(model, collate(some))
    for size in (1, 3):
        cut = [gradient_norms(model, collate(some[i : i + size])) for i in range(0, len(some), size)]
        close(torch.cat(cut), whole)
    close(gradient_norms(model, collate(some, width=40)), whole)
    close(gradient_norms(model, collate(some[::-1])).flip(0), whole)


def test_as_wide_as_there_are_examples():
    some = [s for s in sequences(40) if len(s.ids) <= 9][:8]
    batch, model = collate(some), made("gpt2")
    assert batch.input_ids.shape == (8, 8)
    close(gradient_norms(model, batch), plain(model, some))


@pytest.mark.parametrize("name", ["llama tied", "gpt2", "mixtral"])
def test_small_chunks(name, monkeypatch):
    some, model = sequences(), made(name)
    whole = gradient_norms(model, collate(some))
    monkeypatch.setattr("unlearn.passes.per_example.gradient_norms._BUDGET", 2500)
    close(gradient_norms(model, collate(some)), whole)


@pytest.mark.parametrize("way", [by_gram_matrices, by_sums])
@pytest.mark.parametrize("name", ["phi", "gpt2"])
def test_both_ways_give_the_same(name, way):
    model = made(name, torch.float64)
    seen = 0
    for sites in captured(model, collate(sequences())).sites:
        if isinstance(sites[0], Outer) and not sites[0].left.looked_up:
            chosen, _ = cheaper(sites)
            everyone = slice(0, 7)
            assert_close(way(sites, everyone), chosen(sites, everyone), terms=PASS)
            seen += 1
    assert seen > 10


def test_training_underway_is_left_alone():
    some, model = sequences(), made("qwen2")
    named = dict(model.named_parameters())
    frozen = named["model.layers.0.mlp.up_proj.weight"].requires_grad_(False)
    expected = plain(model, some)
    for p in named.values():
        if p is not frozen and p.ndim == 2:
            p.grad = torch.full_like(p, 3.0)
    weights = {n: p.detach().clone() for n, p in named.items()}
    with torch.no_grad():
        found = gradient_norms(model, collate(some))
        assert not torch.is_grad_enabled()
    close(found, expected)
    assert not found.requires_grad
    for n, p in named.items():
        assert torch.equal(p.detach(), weights[n])
        assert p.requires_grad == (p is not frozen)
        assert p.grad is None if p is frozen or p.ndim < 2 else bool((p.grad == 3.0).all())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_some_are_trained():
    some, model = sequences(), made("opt")
    for name, p in model.named_parameters():  # BitFit, and nothing below the second layer
        p.requires_grad_(name.endswith("bias") and "layers.1" in name)
    close(gradient_norms(model, collate(some)), plain(model, some))


def test_a_parameter_without_part_in_the_answer_counts_as_zero():
    some, model = sequences(), made("llama")
    before = gradient_norms(model, collate(some)).double()
    tensors = len(list(model.parameters()))
    model.spare = nn.Parameter(torch.ones(3))
    close(gradient_norms(model, collate(some)), before * tensors / (tensors + 1), terms=4)


def test_lora():
    model = adapted()
    some = sequences()
    close(gradient_norms(model, collate(some)), plain(model, some))


class Asking(nn.Module):
    """A module with control flow that depends on a value, which `vmap` refuses."""

    def __init__(self):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(16))

    def forward(self, x, *, flip):
        if not bool(x.detach().isfinite().all()):
            raise ValueError("not finite")
        return (x @ self.gain).tanh() * self.shift + flip * x


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Asking()

    def forward(self, x):
        return self.inner(x=x, flip=-1.0)


def test_modules_of_any_kind():
    some, model = sequences(), made("llama", torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.model.layers[1].post_attention_layernorm = Keyword().double()
        model.model.norm = Keyword().double()
    assert captured(model, collate(some)).missed == []
    close(gradient_norms(model, collate(some)), plain(model, some), terms=1)


class Unembedding(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.weight = embedding.weight

    def forward(self, x):
        return x @ self.weight.T


def test_a_head_of_another_kind_tied_to_the_embedding():
    some, model = sequences(), made("llama", torch.float64)
    model.lm_head = Unembedding(model.model.embed_tokens)
    assert captured(model, collate(some)).missed == []
    close(gradient_norms(model, collate(some)), plain(model, some), terms=1)


def test_a_parameter_outside_of_modules_takes_a_pass_per_example():
    some, model = sequences(), made("gpt2")
    model.steer = nn.Parameter(torch.randn(16))
    block = model.transformer.h[0]
    block.register_forward_hook(lambda _, __, out: out + model.steer)
    assert captured(model, collate(some)).missed == [model.steer]
    close(gradient_norms(model, collate(some)), plain(model, some))


def test_a_weight_used_by_hand_as_well():
    some, model = sequences(), made("llama")
    layer = model.model.layers[0]
    again = layer.self_attn.o_proj.weight  # its module accounts for one of two uses
    layer.register_forward_hook(lambda _, __, out: out + out.roll(1, 0) * 0 + out @ again)
    missed = captured(model, collate(some)).missed
    assert [id(p) for p in missed] == [id(again)]
    close(gradient_norms(model, collate(some)), plain(model, some))


def test_outputs_changed_in_place():
    some, model = sequences(), made("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, out: out.mul_(3.0))
    close(gradient_norms(model, collate(some)), plain(model, some))


def test_half_precision():
    some, model = sequences(), made("llama tied", torch.bfloat16)
    close(
        gradient_norms(model, collate(some)), plain(made("llama tied"), some), terms=1, dtype=torch.bfloat16
    )


def test_refusals():
    batch, model = collate(sequences()), made("llama")
    with pytest.raises(ValueError, match="eval mode"):
        gradient_norms(model.train(), batch)
    with pytest.raises(ValueError, match="requires_grad"):
        gradient_norms(model.eval().requires_grad_(False), batch)


def test_what_is_trained_at_the_moment_changes_no_norm(tmp_path):
    """Frozen for adapters or an edit, or merged and loaded again: the attack is on the model as it is."""
    some = encoder().pairs([(e.question, e.answer) for e in examples("forget")])

    def norms(net):
        return Live(net.eval(), encoder(), tmp_path, max_tokens=400).norms(some)

    plain = norms(model())
    frozen = model()
    frozen.requires_grad_(False)
    np.testing.assert_array_equal(norms(frozen), plain)
    assert not any(p.requires_grad for p in frozen.parameters())
    adapted = get_peft_model(model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    flags = [p.requires_grad for p in adapted.parameters()]
    found = norms(adapted)
    assert [p.requires_grad for p in adapted.parameters()] == flags
    assert np.abs(found / plain - 1).max() > 0.01
    assert_close(found, norms(adapted.merge_and_unload()), dtype=torch.float32, terms=PASS, each=True)
