"""A selected parameter without a gradient is reported by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unlearn.training import small_training as training
from unlearn.config import LoraConfig, MethodConfig, ModelConfig, NanoConfig
from unlearn.models.load import resolve_layers, trainable_skeleton
from unlearn.terms import bind
from unlearn.training import gradient_reach

STEER: dict[str, Any] = {"objective": "rmu", "coefficient": 2.0}
NPO: dict[str, Any] = {"objective": "npo", "beta": 0.1}
GATE = {"slot": "retain", "objective": "gate", "label": 0}


def problems(lora: LoraConfig | None = None, **keys: Any) -> list[str]:
    """Of a method on a model of four blocks."""
    lora = lora or LoraConfig()
    shape = NanoConfig(layers=4, hidden_size=8, heads=1)
    cfg = ModelConfig(name="x", kind="nano", nano=shape, lora=lora)
    method = MethodConfig(name="x", **keys)
    model = trainable_skeleton(cfg, method)
    assert model is not None
    assert all(p.is_meta for p in model.parameters())
    return gradient_reach.problems(model, method, lora, resolve_layers(bind(method), cfg))


def steer(layer: float, **keys: Any) -> dict[str, Any]:
    return {"forget": {**STEER, "layer": layer}, **keys}


@pytest.mark.parametrize(
    ("keys", "lost"),
    [
        (steer(2, train=["*.layers.[01].mlp.*"]), None),
        (steer(2, train=["*.layers.*.mlp.down_proj.weight"]), "model.layers.2.mlp.down_proj.weight"),
        (steer(2, train=["*.layers.1.*", "model.norm.weight"]), "model.norm.weight"),
        (steer(1.0, train=["model.norm.weight"]), None),  # the last layer's state has been through it
        (steer(0, train=["*embed_tokens*"]), None),
        (steer(0, train=["*.layers.0.*"]), "model.layers.0.self_attn.q_proj.weight"),
        # The deepest of several layers decides, one with weight 0 does not, and the head reaches everything.
        (steer(1, retain={"objective": "embedding", "layer": 3}, train=["*.layers.2.*"]), None),
        (steer(1, retain={"objective": "nll"}, train=["*.layers.3.*"]), None),
        (
            steer(1, retain={"objective": "nll"}, retain_weight=0, train=["*.layers.3.mlp.up*"]),
            "model.layers.3.mlp.up_proj.weight",
        ),
        ({"forget": NPO, "train": ["*norm*"]}, None),
    ],
)
def test_parameters_chosen_by_pattern(keys: dict[str, Any], lost: str | None) -> None:
    found = problems(**keys)
    assert bool(found) is (lost is not None)
    if lost:
        assert found[0].startswith(f"method.train={keys['train'][-1]}: trains {lost}")


def test_the_message_says_what_the_terms_use() -> None:
    (found,) = problems(**steer(0.5, train=["*.layers.2.mlp.up_proj.weight"]))
    assert found == (
        "method.train=*.layers.2.mlp.up_proj.weight: trains model.layers.2.mlp.up_proj.weight, and no "
        "gradient reaches it: the terms use the hidden states of layer 2 (the output of block 1, counted "
        "from 0); name parameters that come before"
    )


@pytest.mark.parametrize(
    ("targets", "layer", "lost"),
    [
        ("all-linear", 2, None),  # behind the layer they stay as they are, as the whole model would
        ("all-linear", 0, "model.lora.r=2: adapts"),
        (["q_proj", "v_proj"], 1, None),
        (["q_proj", "layers.3.mlp.up_proj"], 2, "model.lora.targets=layers.3.mlp.up_proj: adapts"),
    ],
)
def test_adapters(targets: Any, layer: int, lost: str | None) -> None:
    found = problems(LoraConfig(r=2, targets=targets), **steer(layer))
    assert [problem[: len(lost or "")] for problem in found] == ([lost] if lost else [])


def test_edits() -> None:
    edited: dict[str, Any] = {"intervention": {"name": "grun", "layers": [1, 3]}}
    (found,) = problems(**steer(2, **edited))
    assert found.startswith("method.intervention: trains the edit of block 3, and no gradient reaches it")
    assert problems(**steer(2, further=[GATE], **edited)) == []  # it learns when to open
    assert problems(forget=NPO, **edited) == []


def test_it_agrees_with_autograd_on_real_numbers() -> None:
    method = MethodConfig(name="x", **steer(1))
    terms, model = training.resolve_layers(bind(method)), training.model_for(method)
    lost = gradient_reach.unreached(model, terms)
    states = model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True).hidden_states
    states[1].sum().backward()
    assert lost == [name for name, p in model.named_parameters() if p.grad is None]
    assert 0 < len(lost) < len(list(model.parameters()))


def test_a_model_whose_code_reads_values_is_checked_once_it_has_them() -> None:
    method = MethodConfig(name="x", **steer(1, train=["*.layers.1.mlp.up_proj.weight"]))
    terms, model = training.resolve_layers(bind(method)), training.model_for(method)
    model.model.layers[0].register_forward_hook(
        lambda _, __, output: None if bool((output != 7).any()) else 0
    )
    (found,) = gradient_reach.problems(model, method, LoraConfig(), terms)
    assert "trains model.layers.1.mlp.up_proj.weight" in found
    assert all(p.grad is None for p in model.parameters())
    model.to(device="meta")  # type: ignore[call-arg]
    assert gradient_reach.problems(model, method, LoraConfig(), terms) == []


def test_training_the_whole_model_needs_no_check() -> None:
    whole, part = MethodConfig(name="x", **steer(1)), MethodConfig(name="x", **steer(1, train=["*"]))
    assert not gradient_reach.chosen(whole, LoraConfig())
    assert gradient_reach.chosen(part, LoraConfig())
    assert gradient_reach.chosen(whole, LoraConfig(r=2))
    assert not gradient_reach.chosen(MethodConfig(name="none"), LoraConfig(r=2))
