"""The files of configs/model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from tests.paths import ROOT
from unlearn.config import ModelConfig
from unlearn.models import load as models
from unlearn.models.tokenizer import load_tokenizer, prompt_format

CONFIGS = sorted((ROOT / "configs" / "model").glob("*.yaml"))


def config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test", **keys})


NANO = config(kind="nano")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_model_configs(file: Path) -> None:
    text = file.read_text()
    cfg = config(**yaml.safe_load(text))
    assert text.startswith("# ")
    assert cfg.name == file.stem
    for checkpoints in cfg.published.values():
        assert "target" in checkpoints
    if cfg.prompt.template is not None:
        assert cfg.prompt.template.count("{question}") == 1
    if file.stem != "local":
        assert isinstance(models.identity(cfg) if cfg.kind != "gguf" else {}, dict)


def test_there_are_model_configs() -> None:
    assert {"nano", "local", "smollm2-135m", "llama-3.2-1b-instruct"} <= {file.stem for file in CONFIGS}


def test_prompt_formats_of_the_configs(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    def rendered(name: str) -> str:
        file = next(file for file in CONFIGS if file.stem == name)
        cfg = config(**yaml.safe_load(file.read_text()))
        return prompt_format(cfg).prompt(nano_tokenizer, "Who?")

    assert rendered("llama-2-7b-chat") == "[INST] Who? [/INST]"
    assert rendered("phi-1.5") == "Question: Who?\nAnswer: "
    assert rendered("nano") == "<|user|>Who?<|end|><|assistant|>"
    nano_tokenizer = load_tokenizer(NANO)
    nano_tokenizer.chat_template = "{{ date_string }}|{{ messages[0].content }}|{{ messages[1].content }}"
    assert rendered("llama-3.2-1b-instruct") == "10 Apr 2025|You are a helpful assistant.|Who?"
