"""A training that runs out of memory goes on in smaller portions, with the result of these from the start."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unlearn.training import halved_training
from tests.unlearn.training.halved_training import train
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.errors import UserError
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")

STAGES: list[dict[str, Any]] = [
    {"zero": 0}, {"zero": 2}, {"zero": 2, "dtype": "bf16"}, {"zero": 2, "offload": True},
    {"zero": 2, "offload": True, "dtype": "bf16", "gradients": "bf16"},
]  # fmt: skip
WIDE = 240  # tokens: twelve rows and more, in a later forward more than in the first


@pytest.mark.parametrize(
    "stage", [STAGES[0], *(pytest.param(each, marks=pytest.mark.slow) for each in STAGES[1:])], ids=str
)
def test_one_process_goes_on_as_if_it_had_begun_with_the_smaller_portion(tmp_path, caplog, stage):
    hardware = HardwareConfig(micro_tokens=WIDE, **stage)
    with caplog.at_level(logging.WARNING):
        weights, fitting = train(tmp_path / "halved", hardware, method="npo", limited=True)
    portion = fitting["micro_tokens"]
    assert portion < WIDE
    warnings = [text for text in caplog.messages if "out of memory" in text]
    assert len(warnings) == 1
    assert f"hardware.micro_tokens={portion}" in warnings[0]
    small = hardware.model_copy(update={"micro_tokens": portion})
    wanted, untouched = train(tmp_path / "small", small, method="npo", limited=False)
    assert not untouched
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())
    large, _ = train(tmp_path / "large", hardware, method="npo", limited=False)
    assert any(not torch.equal(weights[name], tensor) for name, tensor in large.items()), "a split shows"


@pytest.mark.parametrize(
    "method", ["ngdiff", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gru", "npo-sam-wmdp"))]
)
def test_a_gradient_of_each_term_is_done_again_alone(tmp_path, method):
    hardware = HardwareConfig(micro_batch=8, zero=2)
    weights, fitting = train(tmp_path / "halved", hardware, method=method, limited=True)
    assert fitting["micro_batch"] < 8
    small = HardwareConfig(micro_batch=fitting["micro_batch"], zero=2)
    wanted, _ = train(tmp_path / "small", small, method=method, limited=False)
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())


def test_a_sequence_that_does_not_fit_alone_is_refused_with_advice(tmp_path):
    hardware = HardwareConfig(micro_tokens=WIDE)
    with pytest.raises(UserError, match=r"a sequence of .*hardware.activation_checkpointing=true"):
        train(tmp_path, hardware, method="npo", limited=True, hungry=8 * halved_training.ROW)


@pytest.mark.slow
def test_at_zero_3_the_step_is_saved_before_the_run_begins_again(tmp_path):
    hardware, folder = HardwareConfig(micro_tokens=WIDE, zero=3), tmp_path / "halved"
    weights, fitting = train(folder, hardware, method="npo", limited=True, first=WIDE)
    assert not weights
    small = hardware.model_copy(update=fitting)
    assert RunDir(folder).newest_checkpoint() == folder / "checkpoints" / "step-1"
    weights, _ = train(folder, small, method="npo", limited=True)
    wanted, _ = train(tmp_path / "small", small, method="npo", limited=False, first=WIDE)
    assert weights
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
def test_two_processes_go_on_alike_where_one_is_out_of_memory(tmp_path, zero):
    def trained(name: str, tokens: int, limited: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        hardware = {"processes": 2, "zero": zero, "micro_tokens": tokens}
        file = tmp_path / "cases.json"
        file.write_text(json.dumps({name: {"method": "npo", "hardware": hardware, "limited": limited}}))
        together(2, halved_training.run, file)
        fitting = json.loads((tmp_path / f"{name}.json").read_text())
        return load_file(tmp_path / f"{name}.safetensors"), fitting

    weights, fitting = trained("halved", WIDE, [1])
    assert fitting["micro_tokens"] < WIDE
    wanted, untouched = trained("small", fitting["micro_tokens"], [])
    assert not untouched
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())
