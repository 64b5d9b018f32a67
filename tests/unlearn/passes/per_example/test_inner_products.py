"""Inner products of single examples' gradients with directions against one backward per example."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tolerance import PASS, assert_close
from tests.unlearn.passes.per_example.gradient_models import CONFIGS, adapted, exactness, made, sequences
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.data.batching import collate
from unlearn.distributed import start_world, stop_world
from unlearn.passes import product_times, products
from unlearn.passes.per_example.capture import captured
from unlearn.passes.per_example.forward_mode import token_effects
from unlearn.passes.per_example.inner_products import inner_products
from unlearn.training.engine import Engine

SOME = sequences()
# A backward, and then a sum over hundreds of products with a random direction.
TERMS = 4 * PASS


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shape(parameter):
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def drawn(name, of, number=0, dtype=torch.float32):
    """The same in every process."""
    made = torch.Generator().manual_seed(zlib.crc32(name.encode()) + number)
    return torch.randn(of, generator=made, dtype=torch.float64).to(dtype)


def random(model, count=2):
    return {n: [drawn(n, shape(p), k, p.dtype) for k in range(count)] for n, p in trained(model).items()}


def gradients(model, some):
    """Return gradients [B, *shape] by parameter, from a backward for each example, without padding."""
    parameters = trained(model)
    found: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for s in some:
        ids = torch.from_numpy(s.ids)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, s.answer_start - 1 : -1]
        loss = nn.functional.cross_entropy(logits, ids[0, s.answer_start :])
        grads = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, grads, strict=True):
            found[name].append(gradient.double())
    return {name: torch.stack(each) for name, each in found.items()}


def plain(model, some, directions):
    return {
        name: torch.stack([(each * v.double()).flatten(1).sum(1) for v in directions[name]])
        for name, each in gradients(model, some).items()
    }


def largest(tensors):
    return max(float(each.abs().max()) for each in tensors.values())


def close(found, expected, dtype=torch.float32):
    # A part of the gradient that cancels out (a bias of keys moves all of a query's scores alike) is zero
    # but for rounding: as exact as the others.
    assert all(each.dtype == torch.float64 for each in found.values())
    assert_close(found, expected, dtype=dtype, terms=TERMS, scale=largest(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name, dtype):
    model = made(name, dtype)
    directions = random(model, 3)
    exact = plain(made(name, torch.float64), SOME, directions)
    for count in (1, 3):  # by rows, and by gradients where that is cheaper
        some = ((n, several[:count]) for n, several in directions.items())
        found = inner_products(model, collate(SOME), some)
        close(found, {n: each[:count] for n, each in exact.items()}, exactness(name, dtype))


@pytest.mark.parametrize("name", ["llama tied", "gpt2", "gemma2"])
def test_products_by_onednn(name, monkeypatch):
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(product_times, "_CLEARLY", 1e-9)
    model, batch = made(name), collate(SOME)
    directions, exact = random(model, 1), made(name, torch.float64)
    found = inner_products(model, batch, directions.items())
    close(found, plain(exact, SOME, directions))
    tokens, truth = (token_effects(m, batch, lambda n: directions[n][0]).effect for m in (model, exact))
    assert_close(tokens, truth, terms=TERMS)


WORLD = made("opt", torch.float64)
WHOLE = inner_products(WORLD, collate(SOME), random(WORLD).items())


@settings(deadline=None, max_examples=10, derandomize=True)
@given(a=st.floats(-9, 9), b=st.floats(-9, 9), rows=st.permutations(range(7)), cut=st.integers(1, 6))
def test_linear_in_the_direction_and_the_same_in_any_batch(a, b, rows, cut):
    mixed = {name: [a * v + b * w] for name, (v, w) in random(WORLD).items()}
    parts = [[SOME[i] for i in part] for part in (rows[:cut], rows[cut:])]
    found = [inner_products(WORLD, collate(part), mixed.items()) for part in parts]
    for name, (of_v, of_w) in WHOLE.items():
        expected = (a * of_v + b * of_w)[rows]
        joined = torch.cat([each[name][0] for each in found])
        assert_close(joined, expected, terms=TERMS, scale=(abs(a) + abs(b)) * largest(WHOLE))


def test_of_each_other():
    model = made("opt", torch.float64)
    each = gradients(model, SOME)
    by_name = inner_products(model, collate(SOME), ((name, list(g)) for name, g in each.items()))
    gram = torch.stack(list(by_name.values())).sum(0)
    assert gram.shape == (7, 7)
    assert_close(gram, gram.T, terms=TERMS)
    squares = sum(g.flatten(1).square().sum(1) for g in each.values())
    assert_close(gram.diagonal(), squares, terms=TERMS)


@pytest.mark.parametrize("count", [1, 2])
def test_zero_is_exactly_zero(count):
    model = made("qwen2")
    zeros = {name: [torch.zeros_like(p)] * count for name, p in trained(model).items()}
    for each in inner_products(model, collate(SOME), zeros.items()).values():
        assert torch.equal(each, torch.zeros(count, 7, dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["llama tied", "gpt2"])
def test_small_chunks_and_padding_beyond_the_longest(name, count, monkeypatch):
    model = made(name, torch.float64)
    directions = random(model, count)
    whole = inner_products(model, collate(SOME), directions.items())
    monkeypatch.setattr("unlearn.passes.per_example.inner_products._BUDGET", {"cpu": 700})
    close(
        inner_products(model, collate(SOME, width=40), directions.items()),
        whole,
        exactness(name, torch.float64),
    )


def test_directions_are_read_to_the_end_and_none_is_left_out():
    model, read = made("llama"), []
    directions = random(model)
    left_out = {"model.norm.weight", list(directions)[-1]}

    def lazily():
        for name, each in directions.items():
            read.append(name)
            yield name, None if name in left_out else each

    found = inner_products(model, collate(SOME), lazily())
    assert read == list(directions)
    assert found.keys() == directions.keys() - left_out


def test_only_what_is_trained():
    model = made("opt")
    for name, p in model.named_parameters():  # BitFit, and nothing below the second layer
        p.requires_grad_(name.endswith("bias") and "layers.1" in name)
    directions = random(model)
    assert len(directions) == 8
    found = inner_products(model, collate(SOME), directions.items())
    close(found, plain(model.double(), SOME, directions))


def test_a_parameter_without_part_in_the_answer_has_none():
    model = made("llama")
    model.spare = nn.Parameter(torch.ones(3))
    found = inner_products(model, collate(SOME), random(model).items())
    assert torch.equal(found["spare"], torch.zeros(2, 7, dtype=torch.float64))


def test_lora():
    model = adapted()
    directions = random(model)
    assert all("lora" in name for name in directions)
    found = inner_products(model, collate(SOME), directions.items())
    close(found, plain(model.double(), SOME, directions))


def outside(model):
    """One parameter is used directly, where rows have no example, and one in its module as well."""
    model.steer = nn.Parameter(drawn("steer", 16, dtype=model.dtype))
    layer = model.model.layers[0]
    again = layer.self_attn.o_proj.weight
    layer.register_forward_hook(lambda _, __, out: out + model.steer + out @ again)
    return model


def test_parameters_outside_of_modules_take_a_pass_per_example():
    model = outside(made("llama"))
    missed = captured(model, collate(SOME)).missed
    assert {id(p) for p in missed} == {id(model.steer), id(model.model.layers[0].self_attn.o_proj.weight)}
    directions = random(model)
    exact = plain(outside(made("llama", torch.float64)), SOME, directions)
    close(inner_products(model, collate(SOME), directions.items()), exact)


def test_half_precision():
    model = made("llama tied", torch.bfloat16)
    directions = {n: [drawn(n, p.shape)] for n, p in trained(model).items()}
    found = inner_products(model, collate(SOME), directions.items())
    exact = plain(model.double(), SOME, directions)  # the same weights
    total, expected = (torch.stack(list(each.values())).sum((0, 1)) for each in (found, exact))
    scale = torch.stack(list(exact.values())).square().sum((0, 1)).sqrt()
    assert_close(total / scale, expected / scale, dtype=torch.bfloat16)


def hooks(model):
    return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("probe", ["inner", "tokens"])
def test_training_underway_is_left_alone(probe):
    model = made("qwen2")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    named = dict(model.named_parameters())
    frozen = named["model.layers.0.mlp.up_proj.weight"].requires_grad_(False)
    for p in trained(model).values():
        if p.ndim == 2:
            p.grad = torch.full_like(p, 3.0)
    weights = {n: p.detach().clone() for n, p in named.items()}
    directions, state, watched = random(model), torch.get_rng_state(), hooks(model)
    if probe == "inner":
        found = inner_products(model, collate(SOME), directions.items())
        exact = made("qwen2", torch.float64)
        exact.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(False)
        close(found, plain(exact, SOME, directions))
        assert not any(each.requires_grad for each in found.values())
    else:
        assert not token_effects(model, collate(SOME), lambda n: directions[n][0]).effect.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    for n, p in named.items():
        assert model.get_parameter(n) is p
        assert torch.equal(p.detach(), weights[n])
        assert p.requires_grad == (p is not frozen)
        assert p.grad is None if p is frozen or p.ndim < 2 else bool((p.grad == 3.0).all())
    assert hooks(model) == watched


def test_refusals():
    batch, model = collate(SOME), made("llama")
    name = "model.norm.weight"
    with pytest.raises(ValueError, match=r"norm\.bias, which is no trained parameter"):
        inner_products(model, batch, [("model.norm.bias", [torch.ones(16)])])
    with pytest.raises(ValueError, match=r"norm\.weight is \[17\], the parameter \[16\]"):
        inner_products(model, batch, [(name, [torch.ones(17)])])
    with pytest.raises(ValueError, match=r"norm\.weight is \[17\], the parameter \[16\]"):
        token_effects(model, batch, lambda n: torch.ones(17) if n == name else None)
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        inner_products(model, batch, [])
    with pytest.raises(ValueError, match="eval mode"):
        token_effects(model, batch, lambda _: None)


PARTITIONED = ("llama tied", "gpt2", "opt")


def both(model, some):
    directions = {n: shape(p) for n, p in trained(model).items()}
    batch = collate(some)
    found = inner_products(
        model, batch, ((n, [drawn(n, of, k) for k in range(2)]) for n, of in directions.items())
    )
    tokens = token_effects(model, batch, lambda n: drawn(n, directions[n]))
    return found | {"tokens": tokens.effect, "logp": tokens.logp}


def partitioned(root):
    """Write a process's products of its examples, and the weights after a step with and without them."""
    world = start_world("cpu")
    products._LEAST, product_times._CLEARLY = 0, 1e-9  # oneDNN's, which reads weights in the backward too
    for name in PARTITIONED:
        nets = [made(name), made(name)]
        kept: dict[str, Any] = {}
        for probed, net in enumerate(nets):
            hardware = HardwareConfig(zero=3, processes=2)
            engine = Engine(
                net, world, hardware, clip=0.0, weight_decay=0.1, betas=(0.9, 0.95),
                zero={"stage3_param_persistence_threshold": 0},  # small ones as well
            )  # fmt: skip
            engine.module.eval()
            assert not any(p.numel() for p in engine.module.parameters())
            for number in range(2):
                ids = torch.arange(10)[None] + 10 * world.rank + number
                engine.backward(engine.model(input_ids=ids).logits.log_softmax(-1)[0, :, 3].sum())
                if probed:
                    kept |= both(engine.module, SOME[world.rank :: 2])
            engine.step(1e-3)
            for key, tensor in engine.weights():
                kept[f"{key}/{probed}"] = tensor.clone()
            engine.close()
            assert nn.functional.linear is products.LINEAR  # ZeRO 3 replaces it
        save_file({k: t.contiguous() for k, t in kept.items()}, Path(root, f"{name}-{world.rank}"))
    stop_world()


@pytest.mark.slow
def test_partitioned_weights(tmp_path):
    together(2, partitioned, str(tmp_path))
    for name in PARTITIONED:
        model = made(name)
        for rank in range(2):
            found = load_file(tmp_path / f"{name}-{rank}")
            expected = both(model, SOME[rank::2])
            parameters = {key: each for key, each in expected.items() if key not in ("tokens", "logp")}
            for key, each in expected.items():
                scale = 0 if key in ("tokens", "logp") else largest(parameters)
                assert_close(found[key], each, dtype=torch.float32, terms=TERMS, scale=scale, named=key)
            after = [key for key in found if key.endswith("/0")]
            assert bool(after) == (rank == 0)
            for key in after:
                assert torch.equal(found[key], found[key[:-1] + "1"]), key
