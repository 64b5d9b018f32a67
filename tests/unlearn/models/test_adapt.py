"""Low-rank adapters, and models put together from gathered weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tests.tolerance import PASS, assert_close
from unlearn.config import LoraConfig, ModelConfig
from unlearn.data.batching import Batch, collate
from unlearn.data.synthetic_authors import author_sets
from unlearn.models import adapt, export, nano
from unlearn.models import load as models
from unlearn.models.locate import ModelError
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.passes.forward import forward

IDS = torch.arange(40).reshape(2, 20)


def config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test", **keys})


NANO = config(kind="nano")


def batch(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Batch:
    examples = author_sets(authors=10, questions=3, forget=10, seed=0)["forget"]
    encoder = make_encoder(cfg, tokenizer, 128)
    return collate(encoder.pairs([(e.question, e.answer) for e in examples]))


def trained_adapter(seed: int = 0) -> Any:
    model = adapt.add_lora(models.load_model(NANO), LoraConfig.model_validate({"r": 4, "alpha": 8}), seed)
    with nano.seeded(9):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
    return model


def test_only_adapters_train_and_they_start_as_zero() -> None:
    plain = models.load_model(NANO)
    state = torch.get_rng_state()
    model = adapt.add_lora(models.load_model(NANO), LoraConfig.model_validate({"r": 4}), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(input_ids=IDS).logits, plain(IDS).logits)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    # Of rank 4 on each projection: 4·(in + out), four of 128·128 and three of 128·344 per layer
    assert sum(p.numel() for p in trained.values()) == 4 * 4 * (4 * (128 + 128) + 3 * (128 + 344))

    adapt.train_only(model, ["*layers.0*"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n in trained if "layers.0" in n
    }
    adapt.train_only(model, ["*"])
    tokens = batch(NANO, load_tokenizer(NANO))
    (-forward(model, tokens).logp.mean()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    again = adapt.add_lora(models.load_model(NANO), LoraConfig.model_validate({"r": 4}), seed=3)
    wanted = dict(again.named_parameters())
    assert all(torch.equal(p, wanted[name]) for name, p in trained.items())


def test_merged_equals_adapted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(NANO)
    model, tokens = trained_adapter(), batch(NANO, tokenizer)
    wanted = forward(model, tokens).logp
    before, given = ({name: tensor.clone() for name, tensor in model.state_dict().items()} for _ in range(2))
    assert (wanted - forward(models.load_model(NANO), tokens).logp).abs().max() > 1e-2

    plain = export.exportable(model, given)
    export.save_pretrained(plain, tokenizer, tmp_path / "model")
    read = models.load_model(NANO, str(tmp_path / "model"))
    assert_close(forward(read, tokens).logp, wanted, terms=PASS)
    assert read.num_parameters() == 988_288  # still tied
    # The adapted model is as it was.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    merged = adapt.merge_lora(model)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert_close(forward(merged, tokens).logp, wanted, terms=PASS)


def test_exportable_takes_the_weights_given(tmp_path: Path) -> None:
    lender, giver = models.load_model(NANO, seed=1), models.load_model(NANO, seed=2)
    weights = {name: tensor.bfloat16() for name, tensor in giver.state_dict().items()}
    plain = export.exportable(lender, weights)
    export.save_pretrained(plain, load_tokenizer(NANO), tmp_path / "model")
    read = models.load_model(NANO, str(tmp_path / "model")).state_dict()
    assert all(torch.equal(read[name], tensor.float()) for name, tensor in weights.items())
    saved_as = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (saved_as["dtype"], saved_as["tie_word_embeddings"]) == ("bfloat16", True)
    assert plain.generation_config.eos_token_id == 1


def test_unknown_modules_to_adapt() -> None:
    with pytest.raises(ModelError, match=r"model\.lora.*no_such"):
        adapt.add_lora(
            models.load_model(NANO), LoraConfig.model_validate({"r": 4, "targets": ["no_such"]}), 0
        )
