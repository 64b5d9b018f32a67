"""A stored model that processes share out at ZeRO 3 is measured as a whole one is."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.collection.records import Records
from eval.evaluate import evaluate
from eval.variants.calibrated import mix
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


def changed(net: Any, other: Any, how: str, editing: Any = nullcontext) -> float:
    """Round or mix a model in place, as a variant does; return the share that was rounded."""
    if how == "mixed":
        mix(net, other, 0.75, editing)
    return quantise(net, *ROUNDING, editing) if how == "rounded" else 0


def run(root: str, dtype: str, how: str) -> None:
    world, hardware = start_world("cpu"), HardwareConfig(processes=2, zero=3, dtype=dtype)
    net = load.read_model(config(Path(root)), precision(dtype))
    with sharded(stored.defer(net), world, hardware) as shared:
        parts = [parameter.ds_tensor for parameter in shared.parameters()]
        held = sum(part.numel() for part in parts)
        assert {part.dtype for part in parts} == {precision(dtype)}
        with sharded(
            stored.defer(load.read_model(other(Path(root)), precision(dtype))), world, hardware
        ) as second:
            share = changed(shared, second, how, partial(whole_parameters, changed=True))
        metrics = measured(shared, Path(root, "shared"), world.with_collective_forward(True))
    Path(root, f"{world.rank}.json").write_text(json.dumps([held, share, metrics]))
    stop_world()


def config(root: Path) -> ModelConfig:
    return ModelConfig(name="local", path=str(root / "model"))


def other(root: Path) -> ModelConfig:
    return ModelConfig(name="local", path=str(root / "other"))


@pytest.mark.parametrize(
    ("dtype", "how"),
    [("fp32", "unchanged"), ("fp32", "rounded"), ("fp32", "mixed"), ("bf16", "mixed")],
)
def test_shared_out_it_has_the_numbers_of_the_whole_model(tmp_path, dtype, how):
    for seed, name in ((3, "model"), (4, "other")):
        model(seed=seed).save_pretrained(tmp_path / name)
    whole, second = (
        load.in_precision(
            load.read_model(made(tmp_path), precision(dtype)), torch.device("cpu"), precision(dtype)
        )
        for made in (config, other)
    )
    rounded_share = changed(whole, second, how)
    alone = measured(whole, tmp_path / "alone", World())
    together(2, run, str(tmp_path), dtype, how)
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
