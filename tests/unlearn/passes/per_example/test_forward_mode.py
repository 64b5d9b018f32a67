"""Effects on single tokens against one backward per token, and against inner products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inner_products import TERMS, drawn, outside, random, trained
from torch import nn

from tests.tolerance import PASS, assert_close
from tests.unlearn.passes.per_example.gradient_models import CONFIGS, adapted, exactness, made, sequences
from unlearn.data.batching import collate
from unlearn.passes.forward import forward
from unlearn.passes.per_example.forward_mode import token_effects
from unlearn.passes.per_example.inner_products import inner_products

SOME = sequences(3, seed=8)


def along(directions, number=0):
    return lambda name: directions[name][number]


def plain(model, some, directions):
    """Return effects by a backward for each token, without padding, hooks or chosen positions."""
    parameters = trained(model)
    found = []
    for s in some:
        ids = torch.from_numpy(s.ids)[None]
        logp = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        for at in range(s.answer_start, len(s.ids)):
            nll = -logp[at - 1, ids[0, at]]
            grads = torch.autograd.grad(
                nll, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            parts = [
                (g.double() * directions[n][0].double()).sum() for n, g in zip(parameters, grads, strict=True)
            ]
            found.append(torch.stack(parts).sum())
    return torch.stack(found)


def close(found, expected, dtype=torch.float32):
    assert_close(found, expected, dtype=dtype, terms=TERMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name, dtype):
    model, batch = made(name, dtype), collate(SOME)
    directions = random(model, 1)
    found = token_effects(model, batch, along(directions))
    close(found.effect, plain(made(name, torch.float64), SOME, directions), exactness(name, dtype))
    assert_close(found.logp, forward(model, batch).logp, terms=PASS)
    assert found.logp.dtype == torch.float32
    assert found.effect.dtype == dtype


@pytest.mark.parametrize("name", CONFIGS)
def test_means_over_tokens_are_the_inner_products(name):
    model, batch = made(name), collate(sequences())
    directions = random(model, 1)
    tokens = token_effects(model, batch, along(directions)).effect.double()
    means = torch.stack([each.mean() for each in tokens.split(batch.lengths.tolist())])
    by_parameter = inner_products(model, batch, directions.items())
    close(means, torch.cat(list(by_parameter.values())).sum(0))


WORLD = made("gpt2", torch.float64)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(a=st.floats(-9, 9), b=st.floats(-9, 9), rows=st.permutations(range(3)), width=st.integers(20, 40))
def test_linear_in_the_direction_and_the_same_in_any_batch(a, b, rows, width):
    directions, batch = random(WORLD), collate(SOME)
    v, w = (token_effects(WORLD, batch, along(directions, k)).effect for k in range(2))
    parts = (a * v + b * w).split(batch.lengths.tolist())
    shuffled = collate([SOME[i] for i in rows], width=width)
    mixed = token_effects(WORLD, shuffled, lambda n: a * directions[n][0] + b * directions[n][1])
    scale = abs(a) * float(v.abs().max()) + abs(b) * float(w.abs().max())
    expected = torch.cat([parts[i] for i in rows])
    assert_close(mixed.effect, expected, terms=TERMS, scale=scale)


def test_zero_is_exactly_zero():
    model, batch = made("llama tied"), collate(SOME)
    for zero in (lambda _: None, lambda n: torch.zeros_like(model.get_parameter(n))):
        effect = token_effects(model, batch, zero).effect
        assert torch.equal(effect, torch.zeros(len(batch.labels)))


def test_the_direction_is_called_for_trained_parameters():
    """It is called in the order of the forward; a frozen parameter has no tangent."""
    model, asked = made("llama"), []
    model.model.norm.requires_grad_(False)

    def note(name):
        asked.append(name)

    token_effects(model, collate(SOME), note)
    assert list(dict.fromkeys(asked))[:2] == [
        "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"
    ]  # fmt: skip
    assert set(asked) == {name for name, _ in model.named_parameters()} - {"model.norm.weight"}


def test_a_tied_weight_has_both_uses():
    model, batch = made("llama tied", torch.float64), collate(SOME)
    name = "model.embed_tokens.weight"
    directions = {n: [torch.zeros_like(p)] for n, p in trained(model).items()}
    directions[name] = random(model)[name]
    found = token_effects(model, batch, lambda n: directions[n][0] if n == name else None)
    close(found.effect, plain(model, SOME, directions))


def test_lora():
    model = adapted()
    directions = random(model)
    found = token_effects(model, collate(SOME), along(directions)).effect
    close(found, plain(model.double(), SOME, directions))


def test_parameters_outside_of_modules():
    model = outside(made("llama"))
    directions = random(model)
    found = token_effects(model, collate(SOME), along(directions)).effect
    close(found, plain(outside(made("llama", torch.float64)), SOME, directions))


def test_a_sure_model_keeps_its_digits():
    """Effects of tokens that are all but certain: 1 − p is about 1e-9, below the resolution of fp32 at 1."""
    model = made("llama tied")
    batch = collate(SOME)
    with torch.no_grad():
        model.lm_head = nn.Linear(16, 97)
        model.lm_head.weight.mul_(1e-3)
    directions = {n: [drawn(n, p.shape)] for n, p in trained(model).items()}
    sure = torch.zeros(97)
    sure[int(batch.labels[0])] = 25.0  # against 96 others: 1 − p = 96·e⁻²⁵ ≈ 1.3e-9
    model.lm_head.bias.data = sure
    found = token_effects(model, batch, along(directions)).effect
    exact = plain(model.double(), SOME, directions)
    assert 0 < abs(float(exact[0])) < 1e-6
    assert_close(found[0], exact[0], terms=TERMS)


def test_half_precision():
    model = made("llama tied", torch.bfloat16)
    directions = {n: [drawn(n, p.shape)] for n, p in trained(model).items()}
    found = token_effects(model, collate(SOME), along(directions)).effect
    exact = plain(model.double(), SOME, directions)  # the same weights
    assert_close(found, exact, dtype=torch.bfloat16)
