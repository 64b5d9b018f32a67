"""A model read slice by slice trains and is saved as one that was loaded whole, in a share of the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benches.loading import MIB, Measured, make_llama, measure
from tests.unlearn.training import loaded_alike
from tests.worlds import together
from unlearn.models import nano

# Odd sizes: nothing divides evenly over two processes.
SHAPE: dict[str, Any] = {
    "vocab_size": 301, "hidden_size": 30, "intermediate_size": 57, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 3,
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"hardware": {"zero": 3}, "tied": True, "lora": True, "file": "bfloat16"},
    {"hardware": {"zero": 3, "dtype": "bf16"}, "tied": False, "lora": False, "file": "float32"},
    {"hardware": {"zero": 2, "dtype": "bf16"}, "tied": True, "lora": False, "file": "float32"},
    {"hardware": {"zero": 0}, "tied": False, "lora": True, "file": "bfloat16"},
]
MORE: list[dict[str, Any]] = [
    {"hardware": {"zero": zero, **dtype}, "tied": tied, "lora": lora, "file": file}
    for zero, dtype in ((0, {}), (2, {}), (3, {}), (3, {"offload": True}), (2, {"dtype": "bf16"}))
    for tied in (True, False)
    for lora in (True, False)
    for file in ("float32", "bfloat16")
]


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
