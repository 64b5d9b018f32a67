"""Linear layers by the faster kernel: the same numbers, a choice by measuring, kept for the machine."""

import json

import pytest
import torch
from torch import nn

from launch.memory.command import composed
from launch.validate.machine import hardware_problems
from tests.tolerance import PASS, assert_close
from unlearn.passes import product_times, products
from unlearn.passes.product_times import Size, Times, bf16_gain, measure, preferred
from unlearn.passes.products import fast_linear_layers, plain_linear_layers

SIZE = Size("forward", "many", 64, 96)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, also after the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    product_times._of_threads.cache_clear()
    yield tmp_path / "unlearn-lab"
    product_times._of_threads.cache_clear()


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN for every size that it can compute, however slow."""
    monkeypatch.setattr(products, "_LEAST", 0)
    monkeypatch.setattr(product_times, "_CLEARLY", 1e-9)


def gradients(model, ids):
    model(input_ids=ids).logits.log_softmax(-1)[..., 3].sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def changed(model):
    return [m for m in model.modules() if "forward" in m.__dict__]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])  # without a bias, with one, few linear layers
def test_gradients_are_the_same(tiny_model, family, onednn):
    model, ids = tiny_model(family), torch.arange(24).reshape(2, 12)
    exact = gradients(tiny_model(family).double(), ids)
    with fast_linear_layers(model):
        found = gradients(model, ids)
    largest = max(float(gradient.abs().max()) for gradient in exact.values())  # a bias of keys has none
    assert_close(found, {n: g.float() for n, g in exact.items()}, terms=PASS, scale=largest)


def test_layers_are_changed_in_the_block_only(tiny_model, onednn):
    model = tiny_model("llama")
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    with fast_linear_layers(model):
        assert changed(model) == layers
        with fast_linear_layers(model):
            assert changed(model) == layers
        assert changed(model) == layers
        with plain_linear_layers(model):
            assert not changed(model)
        assert changed(model) == layers
    assert not changed(model)


def test_what_has_no_choice_stays(tiny_model, onednn):
    for model in (tiny_model("llama").double(), tiny_model("llama").bfloat16()):
        with fast_linear_layers(model):
            assert not changed(model)


def test_frozen_weights_and_inputs_get_no_gradient(onednn):
    layer = nn.Linear(64, 96)
    layer.weight.requires_grad_(False)
    rows = torch.randn(8, 64)
    with fast_linear_layers(layer):
        layer(rows).sum().backward()
    assert layer.weight.grad is None
    assert_close(layer.bias.grad, torch.full((96,), 8.0))


def test_a_second_derivative_is_refused(onednn):
    layer, rows = nn.Linear(64, 96), torch.randn(8, 64, requires_grad=True)
    with fast_linear_layers(layer):
        (first,) = torch.autograd.grad(layer(rows).square().sum(), rows, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_the_choice_is_kept_for_the_machine(cache, monkeypatch):
    state = torch.get_rng_state()
    first = preferred([SIZE])
    assert torch.equal(torch.get_rng_state(), state)
    (file,) = cache.glob("products-*.json")
    stored = json.loads(file.read_text())
    assert stored["threads"] == torch.get_num_threads()
    assert list(stored["seconds"]) == ["forward many 64 96"]
    product_times._of_threads.cache_clear()
    monkeypatch.setattr(product_times, "measure", lambda _: pytest.fail("measured a second time"))
    assert preferred([SIZE]) == first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": {"forward": 1}}', '{"seconds": [1]}'])
def test_a_broken_file_is_measured_again(cache, content):
    preferred([SIZE])
    (file,) = cache.glob("products-*.json")
    file.write_text(content)
    product_times._of_threads.cache_clear()
    preferred([SIZE])
    assert "forward many 64 96" in json.loads(file.read_text())["seconds"]


def test_without_a_cache_folder_it_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    product_times._of_threads.cache_clear()
    preferred([SIZE])
    assert product_times._of_threads(torch.get_num_threads()).known[SIZE].pytorch > 0


def test_without_a_home_directory_there_is_no_cache(tmp_path, monkeypatch):
    """As in a container with a user id that the system does not know."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(tmp_path)
    assert product_times.cache_folder() is None
    preferred([SIZE])
    assert product_times._of_threads(torch.get_num_threads()).known[SIZE].pytorch > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["forward", "input", "weight"])
def test_a_wrong_kernel_is_not_used(kind, monkeypatch):
    assert measure(Size(kind, "few", 64, 96)).onednn
    right = product_times.onednn
    monkeypatch.setattr(product_times, "onednn", lambda left, other: right(left, other) * 1.001)
    times = measure(Size(kind, "few", 64, 96))
    assert times.onednn is None
    assert not times.prefers_onednn


def test_the_gain_of_bf16_is_kept_too(cache, monkeypatch):
    gain = bf16_gain()
    assert gain > 0
    product_times._of_threads.cache_clear()
    monkeypatch.setattr(product_times, "measure_bf16", lambda: pytest.fail("measured a second time"))
    assert bf16_gain() == gain
    problems = hardware_problems(composed("hardware=cpu-bf16"))
    assert bool(problems) == (gain < 1)
    assert all("emulates bf16" in problem for problem in problems)
    assert not hardware_problems(composed("hardware=cpu-bf16", "dry_run=true"))  # may be of another machine


def test_noise_does_not_decide():
    assert not Times(1.0, 0.95).prefers_onednn
    assert Times(1.0, 0.5).prefers_onednn


def test_what_was_measured_is_told_in_a_line_for_each_kind(cache):
    table = product_times._of_threads(torch.get_num_threads())
    for outputs, times in ((96, Times(1.0, 0.5)), (97, Times(1.0, 0.4)), (98, Times(1.0, 0.95))):
        table.known[Size("forward", "few", 64, outputs)] = times
    table.known[Size("weight", "many", 64, 96)] = Times(1.0, None)
    table._write()
    assert product_times.describe()[-2:] == [
        "  forward, few rows: oneDNN for 2 of 3 sizes, up to 2.50× as fast",
        "  weight, many rows: oneDNN for 0 of 1 sizes",
    ]
