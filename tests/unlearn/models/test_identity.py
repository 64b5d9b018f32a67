"""What tells one set of weights from another, without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unlearn.config import ModelConfig, NanoConfig
from unlearn.models import load as models


def config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test", **keys})


NANO = config(kind="nano")


def test_identity_follows_the_content_and_not_the_place(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another name"
    shutil.copytree(saved, copy)
    (copy / "README.md").write_text("Notes.")
    known = models.identity(config(path=str(saved)))
    assert models.identity(config(path=str(copy))) == known
    assert models.identity(NANO, str(copy)) == known  # however it is reached
    assert str(tmp_path) not in json.dumps(known)

    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(before + b" ")
        assert models.identity(NANO, str(copy)) != known, name
        (copy / name).write_bytes(before)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert models.identity(NANO, str(copy)) != known


def test_of_large_weights_a_part_of_every_tensor_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training may have changed one small tensor of a large file."""
    monkeypatch.setattr("unlearn.models.fingerprint._WHOLE", 1 << 20)
    monkeypatch.setattr("unlearn.models.fingerprint._BLOCK", 1 << 10)
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"layer.{i}": torch.zeros(size) for i, size in enumerate((400_000, 10, 3, 100_000, 1))}

    def identity() -> dict[str, Any]:
        save_file(tensors, tmp_path / "model.safetensors")
        return models.identity(config(path=str(tmp_path)))

    known = identity()
    assert identity() == known
    for name, tensor in tensors.items():
        for place in (0, len(tensor) // 2, -1):
            tensor[place] = 1
            assert identity() != known, (name, place)
            tensor[place] = 0
    tensors["layer.0"][1000] = 1  # between the parts
    assert identity() == known
    tensors["layer.5"] = torch.zeros(1)
    assert identity() != known
    (tmp_path / "model.safetensors").write_bytes(bytes(2 << 20))  # no safetensors: reading it reports that
    assert models.identity(config(path=str(tmp_path))) != known


def test_identity_of_what_is_not_a_folder() -> None:
    assert models.identity(NANO) == {"nano": NanoConfig().model_dump()}
    assert models.identity(config(kind="nano", nano={"layers": 2})) != models.identity(NANO)
    assert models.identity(config(path="a/b")) == {"hub": "a/b@main"}
    assert models.identity(config(path="a/b", revision="v1")) == {"hub": "a/b@v1"}
    assert models.identity(config(path="a/b", revision="v1"), "a/target") == {"hub": "a/target@main"}
