"""Variants of models that two processes share out at ZeRO 3 measure what they do of whole ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from eval import variants
from tests.eval.variants.test_depth import RETAIN, TARGET, sure, work
from tests.eval.variants.workbench import bench
from tests.tolerance import PASS, approx
from tests.worlds import together
from unlearn.config import HardwareConfig, ModelConfig
from unlearn.distributed import start_world, stop_world
from unlearn.models import load, stored
from unlearn.passes import block_states, forward
from unlearn.training.engine import precision
from unlearn.training.engine_sharded import sharded

pytestmark = pytest.mark.slow
SEEDS = {"unlearned": 3, "target": TARGET, "retain": RETAIN}
SEARCH = {"tokens": 4, "steps": [2], "batch": 2}
CHOSEN: dict[str, dict[str, Any]] = {
    "depth": {},
    "soft_prompt": {**SEARCH, "step": 0.01},
    "token_prompt": {**SEARCH, "top": 8, "candidates": 6},
}
HARDWARE = {"eval_tokens": 100, "micro_tokens": 100}  # several forwards, not as many on each process


def measured(made: variants.Workbench) -> dict[str, float]:
    return {
        k: v for name, options in CHOSEN.items() for k, v in variants.measure(name, made, options).items()
    }


def in_a_world(root: str) -> None:
    world = start_world("cpu")
    block_states._LOGITS = forward._LOGITS = 3000  # ten rows: several calls of the head a forward
    hardware = HardwareConfig(processes=2, zero=3, **HARDWARE)

    @contextmanager
    def of(name: str | None) -> Iterator[tuple[nn.Module, bool]]:
        stored_at = ModelConfig(name="local", path=str(Path(root, "models", str(name))))
        read = stored.defer(load.read_model(stored_at, precision("fp32")))
        with sharded(read, world, hardware) as model:
            yield model, True

    def held(which: Literal["unlearned", "target"] = "unlearned") -> Any:
        return of(which)

    folder = Path(root, "two")
    made = bench(folder, world=world, hardware=hardware, held=held, held_from=of, has_target=True)
    Path(root, f"{world.rank}.json").write_text(json.dumps(measured(compared(made, folder))))
    stop_world()


def compared(made: variants.Workbench, folder: Path) -> variants.Workbench:
    config = made.config.model_copy(update={"root": str(folder / "root")})
    return replace(made, config=config, weights=work(folder, lambda: None).weights)


def test_shared_out_models_give_what_whole_ones_give(tmp_path: Path) -> None:
    for name, seed in SEEDS.items():
        sure(seed).save_pretrained(tmp_path / "models" / name)
    alone = work(tmp_path / "alone", lambda: sure(SEEDS["unlearned"]))
    hardware = HardwareConfig(**HARDWARE)
    whole = bench(
        tmp_path / "alone", hardware=hardware, held=alone.held, held_from=alone.held_from, has_target=True
    )
    wanted: Mapping[str, float] = measured(compared(whole, tmp_path / "alone"))
    together(2, in_a_world, str(tmp_path))
    for rank in range(2):
        metrics = json.loads((tmp_path / f"{rank}.json").read_text())
        assert metrics.keys() == wanted.keys()
        assert metrics == approx(wanted, terms=PASS, condition=10)
