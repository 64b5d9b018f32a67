"""The nano model and its tokenizer."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
import torch

from unlearn.config import ModelConfig
from unlearn.data.synthetic_authors import author_sets
from unlearn.models import load as models
from unlearn.models import nano
from unlearn.models.locate import ModelError
from unlearn.models.tokenizer import load_tokenizer

MERGES = "78c5a17f46b74a28517bbe67f22ffc042c344d0b25096e732d59ade9cd636c0a"


def config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test", **keys})


NANO = config(kind="nano")


def test_nano_has_a_million_parameters() -> None:
    # 1536·128 embeddings; per layer 4·128² attention, 3·128·344 feed-forward, 2·128 norms; 128 last norm
    assert 1536 * 128 + 4 * (4 * 128**2 + 3 * 128 * 344 + 2 * 128) + 128 == 988_288
    model = models.load_model(NANO)
    assert model.num_parameters() == 988_288
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_nano_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = models.load_model(NANO, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    again = models.load_model(NANO, seed=1).state_dict()
    other = models.load_model(NANO, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_nano_shape_is_configured_and_checked() -> None:
    cfg = config(kind="nano", nano={"hidden_size": 64, "layers": 2, "heads": 2, "vocabulary": 300})
    model = models.load_model(cfg)
    assert (model.config.hidden_size, model.config.vocab_size) == (64, 300)
    assert len(load_tokenizer(cfg)) == 300
    for shape, key in (({"heads": 3}, r"model\.nano\.heads=3"), ({"vocabulary": 100}, r"vocabulary=100")):
        with pytest.raises(ModelError, match=key):
            models.load_model(config(kind="nano", nano=shape))
    with pytest.raises(ModelError, match="261 or more"):
        nano.tokenizer(100)


def test_nano_tokenizer_is_the_same_everywhere() -> None:
    # A change of this value changes what every nano model has learned.
    merges = json.loads(nano.tokenizer(1536).backend_tokenizer.to_str())["model"]["merges"]
    assert len(merges) == 1536 - 261
    assert sha256(json.dumps(merges).encode()).hexdigest() == MERGES


def test_nano_tokenizer_covers_held_out_authors_as_well() -> None:
    tokenizer = load_tokenizer(NANO)
    sets = author_sets(authors=100, questions=10, forget=10, seed=0)
    mean = {}
    for name in ("full", "holdout"):
        lengths = [len(tokenizer(e.answer)["input_ids"]) for e in sets[name]]
        mean[name] = sum(lengths) / len(lengths)
    assert mean["holdout"] == pytest.approx(mean["full"], rel=0.05)
    for example in sets["holdout"]:
        assert tokenizer.decode(tokenizer(example.answer)["input_ids"]) == example.answer
    assert tokenizer.convert_tokens_to_ids(["<|pad|>", "<|end|>"]) == [
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    ]


def test_nano_tokenizers_do_not_share_state() -> None:
    changed = load_tokenizer(NANO)
    changed.chat_template = "x"
    changed.add_tokens(["zebra"])
    assert load_tokenizer(NANO).chat_template != "x"
    assert len(load_tokenizer(NANO)) == 1536
