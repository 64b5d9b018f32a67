"""What tells one set of weights from another, without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

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


def test_large_weights_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn.models.fingerprint._WHOLE", 1 << 20)
    monkeypatch.setattr("unlearn.models.fingerprint._BLOCK", 1 << 10)
    (tmp_path / "config.json").write_text("{}")
    content = bytearray(2 << 20)

    def changed_at(position: int) -> dict[str, Any]:
        changed = bytearray(content)
        changed[position] ^= 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        return models.identity(config(path=str(tmp_path)))

    (tmp_path / "model.safetensors").write_bytes(content)
    known = models.identity(config(path=str(tmp_path)))
    assert changed_at(0) != known
    assert changed_at(-1) != known
    # 64 blocks of 1 KiB, the second begins at (2 MiB − 1 KiB) / 63 = 33,271: 10,000 lies between.
    assert changed_at(33_271) != known
    assert changed_at(10_000) == known
    (tmp_path / "model.safetensors").write_bytes(content + b"\0")
    assert models.identity(config(path=str(tmp_path))) != known


def test_identity_of_what_is_not_a_folder() -> None:
    assert models.identity(NANO) == {"nano": NanoConfig().model_dump()}
    assert models.identity(config(kind="nano", nano={"layers": 2})) != models.identity(NANO)
    assert models.identity(config(path="a/b")) == {"hub": "a/b@main"}
    assert models.identity(config(path="a/b", revision="v1")) == {"hub": "a/b@v1"}
    assert models.identity(config(path="a/b", revision="v1"), "a/target") == {"hub": "a/target@main"}
