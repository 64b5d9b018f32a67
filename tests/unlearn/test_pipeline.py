"""A model of a run that has no room on the device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.allocator import room
from unlearn.config import DatasetConfig, HardwareConfig, MethodConfig, ModelConfig, RunConfig
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.models import nano
from unlearn.models.tokenizer import make_encoder
from unlearn.models.weights import WeightsSource
from unlearn.pipeline import Pipeline
from unlearn.run_dir import RunDir
from unlearn.training.observers import Logger

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")


class Silent(Logger):
    def log(self, row: object, step: int) -> None: ...


def test_a_copy_without_room_is_an_error_after_which_the_next_one_is_loaded(tmp_path: Path) -> None:
    """Embeddings of 64 MiB in fp32, stored in bf16, so that the copy is an allocation."""
    shape = LlamaConfig(
        vocab_size=1 << 16, hidden_size=256, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(shape).bfloat16().save_pretrained(tmp_path / "model")
    tokenizer = nano.tokenizer(300)
    tokenizer.save_pretrained(tmp_path / "model")
    model = ModelConfig(name="local", path=str(tmp_path / "model"))
    config = RunConfig(
        model=model, dataset=DatasetConfig(name="authors", source="authors"),
        method=MethodConfig(name="none"), hardware=HardwareConfig(),
    )  # fmt: skip
    pipeline = Pipeline(
        config, WeightsSource(None, "key"), None, None, RunDir(tmp_path / "run"), Silent(), World(), {},
        tokenizer, make_encoder(model, tokenizer, 64), False, 0.0,
    )  # fmt: skip
    with room(48), pytest.raises(UserError, match="no room for a whole copy of the model"):
        pipeline.loaded(pipeline.finished)
    whole = pipeline.loaded(pipeline.finished)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
