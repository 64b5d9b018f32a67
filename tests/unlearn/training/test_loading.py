"""A model read slice by slice trains and is saved as one that was loaded whole, in a share of the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benches.loading import MIB, Measured, make_llama, measure
from tests.unlearn.training import loaded_alike
from tests.worlds import together
from unlearn.config import HardwareConfig, LoraConfig, ModelConfig
from unlearn.distributed import start_world
from unlearn.models import adapt, load, nano, stored
from unlearn.training.engine import Engine

# Odd sizes: nothing divides evenly over two processes.
SHAPE: dict[str, Any] = {
    "vocab_size": 301, "hidden_size": 30, "intermediate_size": 57, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 3,
}  # fmt: skip
REMAINDERS = {"dtype": "bf16", "gradients": "bf16"}
CASES: list[dict[str, Any]] = [
    {"hardware": {"zero": 3}, "tied": True, "lora": True, "file": "bfloat16"},
    {"hardware": {"zero": 3, "dtype": "bf16"}, "tied": False, "lora": False, "file": "float32"},
    {"hardware": {"zero": 2, "dtype": "bf16"}, "tied": True, "lora": False, "file": "float32"},
    {"hardware": {"zero": 0}, "tied": False, "lora": True, "file": "bfloat16"},
    {"hardware": REMAINDERS, "tied": False, "lora": True, "file": "float32"},
]
MORE: list[dict[str, Any]] = [
    {"hardware": {"zero": zero, **dtype}, "tied": tied, "lora": lora, "file": file}
    for zero, dtype in (
        (0, {}),
        (2, {}),
        (3, {}),
        (3, {"offload": True}),
        (2, {"dtype": "bf16"}),
        (0, REMAINDERS),
    )
    # Any two of the three vary with every hardware.
    for tied, lora, file in (
        (True, True, "float32"),
        (True, False, "bfloat16"),
        (False, True, "bfloat16"),
        (False, False, "float32"),
    )
]
MORE = [case for case in MORE if case not in CASES]


def made(folder: Path, case: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    make_llama(folder, getattr(torch, case["file"]), tie_word_embeddings=case["tied"], **SHAPE)
    nano.tokenizer(300).save_pretrained(folder)
    return folder


def assert_same(sliced: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    assert sliced.keys() == whole.keys()
    assert {key.split("/")[0] for key in whole} == {
        "begin",
        "buffer",
        "weight",
        "exp_avg",
        "exp_avg_sq",
        "saved",
    }
    for name, tensor in whole.items():
        assert sliced[name].dtype == tensor.dtype, name
        assert torch.equal(sliced[name], tensor), name


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(c, marks=pytest.mark.slow) for c in MORE)], ids=str)
def test_trains_as_a_whole_model(tmp_path: Path, case: dict[str, Any]) -> None:
    folder = str(made(tmp_path / "model", case))
    assert_same(
        *(
            loaded_alike.stepped(folder, case["hardware"], sliced=sliced, lora=case["lora"])
            for sliced in (True, False)
        )
    )


class _Fp32(TorchDispatchMode):
    """The most bytes that the parameters of a model have in fp32 at the start of any operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.most, self._parameters = 0, list(model.parameters())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = (p.data for p in self._parameters if p.dtype == torch.float32)
        self.most = max(self.most, sum(tensor.untyped_storage().nbytes() for tensor in wide))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("lora", [True, False])
def test_with_remainders_one_parameter_at_a_time_is_in_fp32(tmp_path: Path, lora: bool) -> None:
    folder = made(tmp_path / "model", {"file": "float32", "tied": False})
    config = ModelConfig(name="local", path=str(folder))
    model: Any = stored.defer(load.read_model(config, torch.bfloat16))
    model = adapt.add_lora(model, LoraConfig(r=2, targets="all-linear"), 5) if lora else model
    adapters = 4 * sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    largest = 4 * 301 * 30
    with _Fp32(model) as fp32:
        engine = Engine(
            model, start_world("cpu"), HardwareConfig(**REMAINDERS), clip=1.0, weight_decay=0.1,
            betas=(0.9, 0.99),
        )  # fmt: skip
    engine.close()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert fp32.most <= adapters + (0 if lora else largest) + 4 * len(list(model.parameters()))


@pytest.mark.slow
def test_two_processes_train_as_with_a_whole_model(tmp_path: Path) -> None:
    cases = {}
    for index, case in enumerate(CASES):
        folder = made(tmp_path / f"model-{index}", case)
        for sliced in (True, False):
            hardware = {"processes": 2, **case["hardware"]}
            cases[f"{sliced} {index}"] = {
                "folder": str(folder), "hardware": hardware, "lora": case["lora"], "sliced": sliced,
            }  # fmt: skip
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    together(2, loaded_alike.run, tmp_path / "cases.json")
    for index, case in enumerate(CASES):
        kept, whole = (load_file(tmp_path / f"{sliced} {index}.safetensors") for sliced in (True, False))
        assert_same(kept, whole)
        if not case["lora"]:  # what is saved are the masters, in compute precision
            for name in [key.removeprefix("weight/") for key in kept if key.startswith("weight/")]:
                assert torch.equal(kept[f"saved/{name}"], kept[f"weight/{name}"].bfloat16().float()), name


@pytest.mark.slow
def test_a_process_takes_its_share_of_the_memory(tmp_path: Path) -> None:
    """Two processes at ZeRO 3, and a model of 96 MiB in bf16, which takes 192 MiB when it is read in fp32."""
    make_llama(
        tmp_path / "model", torch.bfloat16, vocab_size=16_384, hidden_size=512, intermediate_size=2048,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    hardware = {"processes": 2, "zero": 3, "dtype": "bf16"}
    together(2, measure, str(tmp_path / "model"), hardware, str(tmp_path / "out"))
    for rank in range(2):
        measured = Measured(**json.loads((tmp_path / f"out.{rank}.json").read_text()))
        assert 45 * MIB < measured.share < 55 * MIB
        assert measured.largest == 16 * MIB
        # The first engine on a machine times kernels, whose libraries take memory.
        assert not measured.problems(slack=40 * MIB), measured
