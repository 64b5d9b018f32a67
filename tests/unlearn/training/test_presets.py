"""Every preset of configs/method against what its source trains with: steps, rates, batch, weights, layer.

By hand from the papers and their codes (docs/methods.md names them); what a preset comes to is computed by
the functions that train with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import cos, pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from launch.report.methods_page import presets
from unlearn import interventions
from unlearn.config import LoraConfig, ModelConfig, NanoConfig
from unlearn.data.batching import Schedule, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.models.load import resolve_layers, trainable_skeleton
from unlearn.passes.forward import ForwardRequest, read
from unlearn.rules import clip_norm
from unlearn.terms import bind, row_multiples
from unlearn.training import gradient_reach
from unlearn.training.learning_rate import schedule_factor, total_steps, warmup_steps

PRESETS = presets()


@dataclass(frozen=True)
class Run:
    """How long a source trains on so many examples, and its rate at the first, middle and last step
    as shares of the peak."""

    examples: int
    batch: int
    steps: int
    rates: tuple[float, float, float]


# TOFU forget10 has 400 examples. One epoch of warm-up, then down to 0 one step after the last.
TEN = Run(400, 32, 130, (1 / 13, 65 / 117, 1 / 117))
FIVE = Run(400, 32, 65, (1 / 13, 33 / 52, 1 / 52))
FIVE_CONSTANT = Run(400, 32, 65, (1.0, 1.0, 1.0))
FIVE_BY_16 = Run(400, 16, 125, (1 / 25, 63 / 100, 1 / 100))
FIVE_BY_64 = Run(400, 64, 35, (1 / 7, 18 / 28, 1 / 28))
TEN_BY_35 = Run(400, 35, 120, (1 / 12, 60 / 108, 1 / 108))
GRUN = Run(200, 16, 520, (1.0, 1 / 2, 1 / 520))  # forget05, 40 epochs, no warm-up
COSINE = Run(400, 32, 130, (1.0, 1 / 2, (1 - cos(pi / 130)) / 2))  # no warm-up
# A tenth warms up, on a corpus whose epoch is longer than the run.
WMDP = Run(5000, 4, 500, (1 / 50, 250 / 450, 1 / 450))
SMOOTH = Run(5000, 4, 125, (1 / 12, 63 / 113, 1 / 113))

# Texts about one person; 20 steps warm up, then on the cosine.
RWKU = Run(400, 16, 75, (1 / 20, (1 + cos(pi * 17 / 55)) / 2, (1 - cos(pi / 55)) / 2))

ALONE = {"forget": 1.0}
BOTH = {"forget": 1.0, "retain": 1.0}
# The code multiplies one mean over the gates of both sets by 10 (by 100 on WMDP).
GATES = {"forget_gate": 5.0, "retain_gate": 5.0}


@dataclass(frozen=True)
class Source:
    """What a paper or its code trains with: `values` of the first term and its weighting, `layer` the module,
    of so many blocks, whose output terms of hidden states look at (several where terms have layers of their
    own)."""

    run: Run
    lr: float
    weights: Mapping[str, float]
    values: Mapping[str, Any] = field(default_factory=dict)
    decay: float = 0.01
    clip: float = 1.0
    layer: tuple[str | tuple[str, ...], int] | None = None
    rule: Mapping[str, Any] = field(default_factory=dict)
    smooth: Mapping[str, Any] = field(default_factory=dict)


SOURCES: dict[str, Source | None] = {
    # 5 × 400 rows, 2 × 58 steps; its code leaves the last, smaller batch of an epoch out: 2 × 57
    "altpo": Source(Run(400, 35, 116, (1 / 58, 1.0, 1 / 58)), 5e-5, BOTH, {"beta": 0.1}),
    "altpo-openunlearning": Source(TEN, 2e-5, BOTH, {"beta": 0.05}),
    "ceu": Source(Run(400, 32, 104, (1 / 13, 52 / 91, 1 / 91)), 1e-5, ALONE),
    "dpo": Source(TEN_BY_35, 2e-5, BOTH, {"beta": 0.1}),
    "dsg": None,
    "finetune": Source(Run(4000, 32, 625, (1 / 125, 313 / 500, 1 / 500)), 1e-5, {"full": 1.0}),
    "flat": Source(FIVE_BY_64, 1e-5, ALONE, {"divergence": "kl"}),
    "flat-batch": Source(FIVE_BY_64, 1e-5, ALONE, {"divergence": "kl", "padded": 500}),
    "flat-copyright": Source(FIVE, 2e-7, ALONE, {"divergence": "kl"}),
    "flat-js": Source(FIVE_BY_64, 1e-5, ALONE, {"divergence": "jensen_shannon"}),
    "flat-pearson": Source(FIVE_BY_64, 1e-5, ALONE, {"divergence": "pearson"}),
    "flat-tv": Source(FIVE_BY_64, 1e-5, ALONE, {"divergence": "total_variation"}),
    "grad_ascent": Source(FIVE, 1e-5, ALONE),
    "grad_diff": Source(TEN, 1e-5, BOTH),
    "grun": Source(GRUN, 4e-3, {"forget": 1.0, "retain": 2.0, **GATES}, decay=0),
    "grun-idk": Source(GRUN, 4e-3, {"template": 1.0, "retain": 1.0, **GATES}, decay=0),
    "grun-npo": Source(GRUN, 4e-3, {"forget": 100.0, "retain": 1.0, **GATES}, {"beta": 0.1}, decay=0),
    "grun-wmdp": Source(  # hidden_states[31] of its code
        Run(2000, 16, 500, (1.0, 1 / 2, 1 / 500)), 4e-3,
        {**BOTH, "forget_gate": 50.0, "retain_gate": 50.0},
        {"coefficient": 300.0, "direction": "unit"}, decay=0, layer=("model.layers.30", 32),
    ),
    "gru": Source(FIVE_CONSTANT, 1e-5, BOTH, clip=0, rule={"name": "gru", "gamma": 0.8}),
    "gru-npo": Source(FIVE_CONSTANT, 1e-5, BOTH, {"beta": 0.1}, clip=0, rule={"name": "gru", "gamma": 0.8}),
    "hard-sampling": Source(FIVE_BY_16, 1e-5, BOTH, {"keep": 0.3}, decay=0),
    "idk": Source(FIVE, 1e-5, {"template": 1.0, "retain": 1.0}),
    "idk_ap": Source(FIVE, 1e-5, {"template": 1.0, "retain": 1.0}),
    "jensun": Source(Run(400, 32, 130, (1 / 13, 65 / 117, 1 / 117)), 8e-6, BOTH),
    "kl_min": Source(FIVE, 1e-5, BOTH),
    "kto": Source(TEN, 1e-5, BOTH, {"beta": 0.1, "form": "logsigmoid"}),
    "llmu": Source(
        Run(5000, 2, 1000, (1.0, 1 / 2, 1 / 1000)), 2e-6,
        {"forget": 0.5, "template": 1.0, "retain": 1.0}, clip=0,
    ),
    "loku": Source(FIVE, 1e-4, BOTH),
    "lunar": Source(
        Run(400, 2, 4000, (1.0, 1 / 2, 1 / 4000)), 1e-2, BOTH, {"coefficient": 2.0}, clip=0,
        layer=("model.layers.22", 32),
    ),
    "me_gd": Source(FIVE, 1e-5, {"forget": 0.1, "retain": 1.0}),
    # From there on its rate comes from probes.
    "ngdiff": Source(Run(400, 32, 130, (1 / 13, 1.0, 1.0)), 1e-5, BOTH, clip=0, rule={"name": "normalised"}),
    "nlul": Source(TEN, 1e-5, BOTH),
    "none": None,
    "npo": Source(TEN, 1e-5, BOTH, {"beta": 0.1}),
    "npo-altpo": Source(TEN_BY_35, 2e-5, {"forget": 1.0, "retain": 2.0}, {"beta": 0.05}),
    "npo-geffect": Source(FIVE_BY_16, 1e-5, ALONE, {"beta": 0.5}, decay=0),
    "npo-kl": Source(TEN, 1e-5, BOTH, {"beta": 0.1}),
    "npo-cr-wmdp": Source(
        SMOOTH, 8.5e-6, BOTH, {"beta": 0.035, "per_token": True}, decay=0,
        smooth={"name": "curvature", "weight": 10, "mu": 0.01}
    ),
    "npo-gp-wmdp": Source(
        SMOOTH, 7.5e-6, BOTH, {"beta": 0.04, "per_token": True}, decay=0,
        smooth={"name": "penalty", "weight": 10}
    ),
    "npo-rs-wmdp": Source(
        SMOOTH, 1e-5, {"forget": 1.0, "retain": 2.0}, {"beta": 0.0125, "per_token": True}, decay=0,
        smooth={"name": "random", "sigma": 1e-4, "draws": 3},
    ),
    "npo-sam-muse": Source(
        Run(400, 4, 1000, (1.0, 1.0, 1.0)), 1e-5, BOTH, {"beta": 0.1}, decay=0,
        smooth={"name": "sam", "rho": 0.01},
    ),
    "npo-sam-wmdp": Source(
        SMOOTH, 5e-6, {"forget": 1.0, "retain": 2.25}, {"beta": 0.015, "per_token": True}, decay=0,
        smooth={"name": "sam", "rho": 0.01},
    ),
    "npo-wa-wmdp": Source(
        SMOOTH, 5.5e-6, {"forget": 1.0, "retain": 2.0}, {"beta": 0.05, "per_token": True}, decay=0,
        smooth={"name": "average", "start": 0.8, "every": 5},
    ),
    "npo-rwku": Source(RWKU, 2e-6, ALONE, {"beta": 0.2}, decay=0),
    "npo-wmdp": Source(WMDP, 5e-6, BOTH, {"beta": 0.0225, "per_token": True}, decay=0),
    "pdu": Source(
        Run(400, 128, 40, (1 / 4, 20 / 36, 1 / 36)), 1e-5, BOTH,
        rule={"epsilon": 0.3, "rate": 5.0, "initial": 100.0, "warmup_epochs": 5.0, "every": "step"},
    ),
    "pdu-muse": Source(
        Run(400, 128, 40, (1.0, 1.0, 1.0)), 1e-5, BOTH, decay=0,
        rule={"epsilon": 1.5, "rate": 1.0, "initial": 50.0, "warmup_epochs": 3.0, "every": "step"},
    ),
    "reinforce": Source(COSINE, 1e-5, ALONE, decay=0),
    "relearn": Source(
        Run(400, 8, 500, (1 / 250, 1.0, 1 / 250)), 1e-4, {"template": 1.0, "retain": 1.0, "retain_kl": 1.0}
    ),
    "rmu": Source(TEN, 1e-5, BOTH, {"coefficient": 2.0, "direction": "unit"}, layer=("model.layers.7", 16)),
    "rmu-adaptive": Source(TEN, 1e-5, BOTH, {"scale": 5.0}, layer=("model.layers.7", 16)),
    "rmu-geffect": Source(
        FIVE_BY_16, 1e-5, ALONE, {"coefficient": 2.0, "direction": "uniform"}, decay=0,
        layer=("model.layers.20", 32),  # hidden_states[21]
    ),
    "rmu-wmdp": Source(
        Run(5000, 4, 150, (1.0, 1.0, 1.0)), 5e-5, {"forget": 1.0, "retain": 1200.0},
        {"coefficient": 6.5, "direction": "unit"}, decay=0, clip=0, layer=("model.layers.7", 32),
    ),
    "rmu-wmdp-openunlearning": Source(
        Run(5000, 16, 80, (1.0, 1.0, 1.0)), 5e-5, BOTH, {"coefficient": 2.0, "direction": "unit"}, decay=0,
        layer=("model.layers.7", 32),
    ),
    "rr": Source(  # hidden_states[10] and [20] of 32 blocks
        Run(400, 16, 150, (1.0, 1.0, 1.0)), 1e-4,
        {"forget": 0.5, "retain": 0.5, "forget_reroute": 0.5, "retain_embedding": 0.5}, decay=0,
        layer=(("model.layers.9", "model.layers.19"), 32),
        rule={"factors": {
            "forget": [10, 5], "forget_reroute": [10, 5], "retain": [0, 5], "retain_embedding": [0, 5]
        }},
    ),
    "satimp": Source(FIVE_BY_16, 1e-5, {"forget": 1.0, "retain": 0.1}, {"beta1": 5, "beta2": 0.1}, decay=0),
    "satimp-muse": Source(
        Run(400, 2, 1600, (1.0, 1.0, 1.0)), 1e-5, {"forget": 1.0, "retain": 0.1}, {"beta1": 5, "beta2": 0.1},
        decay=0,
    ),
    "satimp-openunlearning": Source(TEN, 1e-5, {"forget": 0.1, "retain": 1.0}, {"beta1": 5, "beta2": 1}),
    "satimp-openunlearning-2026": Source(
        FIVE, 1e-5, {"forget": 1.0, "retain": 0.1}, {"beta1": 4, "beta2": 0.1}
    ),
    "satimp-wmdp": Source(
        Run(5000, 16, 125, (1 / 12, 63 / 113, 1 / 113)), 4e-6, {"forget": 1.0, "retain": 0.1},
        {"beta1": 5, "beta2": 0.1}, decay=0,
    ),
    "simimp": Source(FIVE_BY_16, 1e-5, BOTH, {"beta": 5}, decay=0),
    "simnpo": Source(TEN, 1e-5, {"forget": 0.125, "retain": 1.0}, {"beta": 4.5, "delta": 0}),
    "simnpo-forget05": Source(
        Run(200, 32, 70, (1 / 7, 35 / 63, 1 / 63)), 1e-5, {"forget": 0.1375, "retain": 1.0},
        {"beta": 2.5, "delta": 0},
    ),
    "simnpo-muse": Source(
        Run(400, 4, 1000, (1.0, 1.0, 1.0)), 1e-5, {"forget": 1.0, "retain": 0.1}, {"beta": 0.7, "delta": 0},
        decay=0,
    ),
    "simnpo-openunlearning": Source(TEN, 5e-5, {"forget": 0.125, "retain": 1.0}, {"beta": 4.5, "delta": 1}),
    "simnpo-wmdp": Source(WMDP, 9.5e-6, BOTH, {"beta": 0.1, "delta": 0}, decay=0),
    "simsat": Source(FIVE_BY_16, 1e-5, {"forget": 0.1, "retain": 1.0}, {"beta": 5}, decay=0),
    "task_vector": Source(COSINE, 1e-5, ALONE, decay=0),
    "tnpo": Source(FIVE_BY_16, 1e-5, ALONE, {"beta": 4}, decay=0),
    "undial": Source(TEN, 1e-4, ALONE, {"beta": 10}),
    "undial-paper": Source(Run(400, 32, 130, (1.0, 1 / 2, 1 / 130)), 1e-6, ALONE, {"beta": 3}, decay=0),
    "undo": Source(Run(400_000, 110, 3000, (1 / 50, 1.0, 1.0)), 2e-5, {"retain": 1.0}, decay=0),
    "wga": Source(TEN, 1e-5, BOTH, {"beta": 1}),
    "wga-geffect": Source(FIVE_BY_16, 1e-5, ALONE, {"beta": 5}, decay=0),
    "whp": None,
    "whp-distilled": Source(FIVE, 1e-5, ALONE, {"alpha": 1}),
    "wtnpo": Source(FIVE_BY_16, 1e-5, ALONE, {"beta": 4, "alpha": 1.5}, decay=0),
}  # fmt: skip
TRAINED = {name: source for name, source in SOURCES.items() if source is not None}
WITH_LAYER = {name: source.layer for name, source in TRAINED.items() if source.layer is not None}


def test_every_preset_has_its_source_here() -> None:
    assert PRESETS.keys() == SOURCES.keys()
    assert {name for name, method in PRESETS.items() if not method.terms} == SOURCES.keys() - TRAINED.keys()


@pytest.mark.parametrize("name", TRAINED)
def test_steps_and_rates(name: str) -> None:
    method, source = PRESETS[name], TRAINED[name]
    anchor = method.sets[0]
    rows = source.run.examples * row_multiples(method, bind(method)).get(anchor, 1)
    by_epoch = Schedule({anchor: rows}, anchor, method.batch, seed=0).steps_per_epoch
    total, warmup = total_steps(method, by_epoch), warmup_steps(method, by_epoch)
    rates = [
        method.rate(1.0) * schedule_factor(step, total, warmup, method.schedule)
        for step in (0, total // 2, total - 1)
    ]
    assert (method.batch, total) == (source.run.batch, source.run.steps)
    assert rates == pytest.approx([source.lr * share for share in source.run.rates], rel=1e-9)


@pytest.mark.parametrize("name", TRAINED)
def test_weights_and_values(name: str) -> None:
    method, source = PRESETS[name], TRAINED[name]
    terms = bind(method)
    assert {term.name: term.weight for term in terms} == source.weights
    first = terms[0]
    weighting = first.weighting.bound.hyper if first.weighting else {}
    assert {**first.objective.hyper, **weighting} == source.values
    assert (method.weight_decay, clip_norm(method), method.betas) == (source.decay, source.clip, (0.9, 0.999))
    stated = method.rule.model_dump()
    assert {key: stated[key] for key in source.rule} == source.rule
    assert (
        method.smooth.model_dump(exclude_defaults=not source.smooth, include={*source.smooth})
        == source.smooth
    )


# -- the layer, by the modules of a real model ---------------------------------------------------------


@cache
def states(blocks: int) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Outputs of a model's blocks by module, and by layer what a term that names it is given."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, num_hidden_layers=blocks, **shape))
    by_module: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[0] == "model.layers":
            module.register_forward_hook(
                lambda _, __, output, name=name: by_module.update(
                    {name: interventions._base.hidden_of(output)}
                )
            )
    batch = collate([TokenSequence(np.array([1, 2, 3, 4]), 2, ended=True)], 0)
    layers = tuple(range(blocks + 1))
    with torch.no_grad():
        (found,) = read(model, batch, [ForwardRequest(batch.index, batch.labels, layers=layers)])
    given = {layer: found[f"hidden/{layer}"] for layer in layers}
    return {name: output.flatten(0, 1)[batch.index] for name, output in by_module.items()}, given


@pytest.mark.parametrize("name", WITH_LAYER)
def test_the_layer_that_the_loss_is_on(name: str) -> None:
    module, blocks = WITH_LAYER[name]
    by_module, given = states(blocks)
    cfg = ModelConfig(name="x", kind="nano", nano=NanoConfig(layers=blocks))
    deep = [term for term in resolve_layers(bind(PRESETS[name]), cfg) if term.layer is not None]
    assert deep
    found = set()
    for term in deep:
        (same,) = [m for m, output in by_module.items() if torch.equal(output, given[int(term.layer or 0)])]
        found.add(same)
    assert found == ({module} if isinstance(module, str) else set(module))


def test_only_presets_with_a_layer_look_at_hidden_states() -> None:
    named = {name for name, m in PRESETS.items() if any(t.needs & {"hidden", "ref_hidden"} for t in bind(m))}
    assert named == set(WITH_LAYER)


CHOSEN = [name for name, m in PRESETS.items() if gradient_reach.chosen(m, LoraConfig())]


@pytest.mark.parametrize(
    "name",
    # Those with a layer by number need a deep model; one of them is enough most of the time.
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in WITH_LAYER and name != "rmu-wmdp" else [])
        for name in CHOSEN
    ],
)
def test_what_is_chosen_to_be_trained_gets_a_gradient(name: str) -> None:
    blocks = 32 if name in WITH_LAYER else 4
    cfg = ModelConfig(name="x", kind="nano", nano=NanoConfig(layers=blocks, hidden_size=8, heads=1))
    model = trainable_skeleton(cfg, PRESETS[name])
    assert model is not None
    assert (
        gradient_reach.problems(model, PRESETS[name], cfg.lora, resolve_layers(bind(PRESETS[name]), cfg))
        == []
    )
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    if name == "lunar":
        assert trained == ["model.layers.22.mlp.down_proj.weight"]
    if name.startswith("rmu-wmdp"):
        assert trained == [f"model.layers.{block}.mlp.down_proj.weight" for block in (5, 6, 7)]


# -- the objective that a preset comes to, on three tokens ---------------------------------------------

P, REFERENCE = (0.9, 0.5, 0.1), (0.95, 0.6, 0.3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grad_ascent", -1.0336975964),
        ("wga", -0.2238855212),
        ("wga-geffect", -0.0279660687),
        ("simsat", -0.0279660687),
        ("simimp", -0.4604384582),
        ("satimp", -0.0232172238),
        ("satimp-openunlearning", -0.0056908604),
        ("satimp-openunlearning-2026", -0.0318526582),
        ("tnpo", -0.2003708292),
        ("wtnpo", -0.0804992129),
        ("npo", 12.5724651931),
        ("npo-geffect", 1.6563491232),
        ("simnpo", 0.0042225186),
        ("simnpo-forget05", 0.0581936499),
    ],
)
def test_the_forget_term_on_a_toy(name: str, value: float) -> None:
    term = bind(PRESETS[name])[0]
    named = {
        "logp": torch.tensor(P).log(), "ref_logp": torch.tensor(REFERENCE).log(),
        "lengths": torch.tensor([3]),
    }  # fmt: skip
    assert float(term.values(named).double().mean()) == pytest.approx(value, rel=2e-5)
