"""A stored model that processes share out at ZeRO 3 is measured as a whole one is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.collection.records import Records
from eval.evaluate import evaluate
from eval.variants.quantisation import Options, quantise, quantised
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, approx, assert_close
from tests.worlds import together
from unlearn.config import HardwareConfig, ModelConfig
from unlearn.distributed import World, start_world, stop_world
from unlearn.models import load, stored
from unlearn.training.engine import precision
from unlearn.training.engine_sharded import sharded
from unlearn.training.engine_slices import whole_parameters

pytestmark = pytest.mark.slow
ROUNDING = (partial(quantised, bits=4), Options())
SETS = {
    "forget_eval": examples("forget"),
    "retain_eval": examples("retain")[:3],
    "holdout": examples("holdout")[:3],
}


def measured(net: Any, folder: Path, world: World) -> dict[str, float]:
    options = {"max_new_tokens": 12}
    return evaluate(
        net, encoder(), "tofu", SETS, folder, options=options, world=world, max_tokens=200,
        max_rows_generation=4,
    )  # fmt: skip


def run(root: str, dtype: str, rounded: bool) -> None:
    world, hardware = start_world("cpu"), HardwareConfig(processes=2, zero=3, dtype=dtype)
    net = load.read_model(config(Path(root)), precision(dtype))
    with sharded(stored.defer(net), world, hardware) as shared:
        parts = [parameter.ds_tensor for parameter in shared.parameters()]
        held = sum(part.numel() for part in parts)
        assert {part.dtype for part in parts} == {precision(dtype)}
        share = quantise(shared, *ROUNDING, partial(whole_parameters, changed=True)) if rounded else 0
        metrics = measured(shared, Path(root, "shared"), world.with_collective_forward(True))
    Path(root, f"{world.rank}.json").write_text(json.dumps([held, share, metrics]))
    stop_world()


def config(root: Path) -> ModelConfig:
    return ModelConfig(name="local", path=str(root / "model"))


@pytest.mark.parametrize(("dtype", "rounded"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_shared_out_it_has_the_numbers_of_the_whole_model(tmp_path, dtype, rounded):
    model(seed=3).save_pretrained(tmp_path / "model")
    whole = load.in_precision(
        load.read_model(config(tmp_path), precision(dtype)), torch.device("cpu"), precision(dtype)
    )
    rounded_share = quantise(whole, *ROUNDING) if rounded else 0
    alone = measured(whole, tmp_path / "alone", World())
    together(2, run, str(tmp_path), dtype, rounded)
    size = sum(parameter.numel() for parameter in whole.parameters())
    for rank in range(2):
        held, share, metrics = json.loads((tmp_path / f"{rank}.json").read_text())
        assert held == pytest.approx(size / 2, rel=0.01)
        assert share == rounded_share
        assert metrics.keys() == alone.keys()
        assert metrics == approx(alone, terms=PASS if dtype == "fp32" else 1, dtype=precision(dtype))
    one, two = Records(tmp_path / "alone" / "tofu"), Records(tmp_path / "shared" / "tofu")
    tolerance: dict[str, Any] = {"dtype": precision(dtype), "terms": PASS if dtype == "fp32" else 1}
    for name in ("forget/answer", "retain/answer"):
        assert_close(two.likelihood(name).logp.values, one.likelihood(name).logp.values, **tolerance)
    assert_close(
        two.norms("forget/gradients").norm, one.norms("forget/gradients").norm, each=True, **tolerance
    )
