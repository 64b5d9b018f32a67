"""Problems of a model folder, found from its files alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from unlearn.models.model_files import problem, tokenizer_problem

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"model_type": "lamma"}, r"model_type lamma.*did you mean llama"),
    "no type": ({"model_type": None}, "no model_type"),
    "encoder and decoder": ({"model_type": "t5"}, "t5 is not a causal"),
    "of pictures": ({"model_type": "vit"}, "vit is not a causal"),
    "own code": ({"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}, "trust_remote_code=true"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq"),
}


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_folder_is_fine(saved: Path) -> None:
    assert problem(saved) is None
    assert tokenizer_problem(saved) is None


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name: str, folder: Path) -> None:
    keys, message = CONFIGS[name]
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))
    assert message_matches(folder, message)


def test_code_of_the_model_is_run_where_it_is_trusted(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mine", "auto_map": {}}
    (folder / "config.json").write_text(json.dumps(config))
    assert problem(folder, trust=True) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "", "config.json is empty"),
        ("config.json", '{"model', "config.json is broken, perhaps cut short"),
        ("config.json", "[]", "config.json is broken.*not a JSON object"),
        ("generation_config.json", "{", "generation_config.json is broken"),
        ("model.safetensors", "", "model.safetensors is empty"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
        (
            "adapter_config.json",
            '{"base_model_name_or_path": "base"}',
            "an adapter .*of base.*merged already",
        ),
    ],
)
def test_files_that_cannot_be_read(name: str, text: str, message: str, folder: Path) -> None:
    (folder / name).write_text(text)
    assert message_matches(folder, message)


def test_weights_cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert message_matches(folder, "model.safetensors is broken, perhaps cut short")


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({}, "has no weights"),
        ({"pytorch_model.bin": "x"}, r"pickled \(pytorch_model.bin\).*convert it once"),
        ({"model-1.safetensors": "x"}, "neither model.safetensors nor .*index.json.*model-1"),
        ({"model.safetensors.index.json": "{}"}, "no weight_map"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "b"}}'}, "of which b is missing"),
    ],
)
def test_weights_that_are_elsewhere(instead: dict[str, str], message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name, text in instead.items():
        (folder / name).write_text(text)
    assert message_matches(folder, message)


def test_the_folder_of_a_run_names_the_one_in_it(folder: Path) -> None:
    assert message_matches(folder.parent, "no config.json.*did you mean its folder model")


@pytest.mark.parametrize(
    ("removed", "text", "message"),
    [
        (("tokenizer.json",), "{}", "no tokenizer.json"),
        ((), "{", "tokenizer_config.json is broken"),
    ],
)
def test_tokenizers(removed: tuple[str, ...], text: str, message: str, folder: Path) -> None:
    for name in removed:
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text(text)
    assert message in (tokenizer_problem(folder) or "")


def message_matches(folder: Path, pattern: str) -> bool:
    return re.search(pattern, problem(folder) or "") is not None
