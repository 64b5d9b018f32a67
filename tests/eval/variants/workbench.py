"""A finished run of a tiny Llama on a few authors, for the tests of variants and the processes they start.

`python -m tests.eval.variants.workbench FOLDER` relearns as one process of a world given by torchrun's
environment variables; the first process writes the metrics to FOLDER.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlamaForCausalLM

from eval.suite import Scoring
from eval.variants import Workbench, measure
from eval.variants._base import Held, HeldModel
from unlearn.config import (
    DatasetConfig,
    EvalConfig,
    HardwareConfig,
    MethodConfig,
    ModelConfig,
    NanoConfig,
    RunConfig,
)
from unlearn.data.sources import load_sets
from unlearn.distributed import World
from unlearn.models import nano
from unlearn.models.tokenizer import make_encoder

SHAPE = NanoConfig(hidden_size=32, layers=2, heads=2, vocabulary=300)
AUTHORS = {"authors": 10, "questions": 4}
DATA = DatasetConfig(name="authors", source="authors", options=AUTHORS, forget="forget30")
BENCHMARKS: dict[str, dict[str, Any]] = {"tofu": {"max_new_tokens": 4}}
RELEARNING = {"steps": [2, 6], "share": 0.25, "lr": 5e-3, "batch": 2}


def llama(seed: int = 1) -> LlamaForCausalLM:
    return nano.model(SHAPE, seed=seed)


def bench(
    directory: Path, *, world: World | None = None, unlearned: Callable[[], Any] = llama,
    target: Callable[[], Any] | None = None, hardware: HardwareConfig | None = None, **other: Any,
) -> Workbench:  # fmt: skip
    world = world or World(0, 1, torch.device("cpu"))
    config = RunConfig(
        model=ModelConfig(name="tiny", kind="nano", nano=SHAPE), dataset=DATA,
        method=MethodConfig(name="none"), eval=EvalConfig(benchmarks=dict(BENCHMARKS)),
        hardware=hardware or HardwareConfig(),
    )  # fmt: skip
    sets = load_sets(DATA, {"forget", "forget_eval", "retain_eval", "real_authors", "world_facts"})
    sets = {name: rows[:8] for name, rows in sets.items()}
    encoder = make_encoder(config.model, nano.tokenizer(SHAPE.vocabulary), 128)
    score = Scoring(BENCHMARKS, sets, encoder, directory / "eval", world, config.hardware)

    made = Workbench(
        config, sets, sets, encoder, world, score, directory, held=holding(unlearned, target),
        held_from=lambda _: nullcontext((llama(), False)), has_target=target is not None,
        trainable=unlearned, progress=False,
    )  # fmt: skip
    return replace(made, **other)


def holding(unlearned: Callable[[], Any], target: Callable[[], Any] | None = None) -> Held:
    """What a workbench holds: whole models."""

    def held(which: Literal["unlearned", "target"] = "unlearned") -> HeldModel:
        made = unlearned if which == "unlearned" else target
        assert made is not None
        return nullcontext((made(), False))

    return held


def relearn(directory: Path, world: World, hardware: HardwareConfig) -> Mapping[str, float]:
    return measure("relearning", bench(directory, world=world, hardware=hardware), RELEARNING)
