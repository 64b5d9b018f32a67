"""States between blocks: read before the final norm, overwritten, and decoded, for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.tolerance import PASS, assert_close
from unlearn import interventions
from unlearn.data.batching import Batch, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.errors import UserError
from unlearn.passes import block_states as module
from unlearn.passes.block_states import block_states, decoded_logp, overwritten
from unlearn.passes.forward import answer_logits, forward
from unlearn.passes.token_logp import token_logp
from unlearn.passes.unpadded import without_padding

Build = Callable[[str], PreTrainedModel]


def batch() -> Batch:
    rng = np.random.default_rng(0)
    shapes = [(9, 3), (5, 1), (14, 10)]
    return collate([TokenSequence(rng.integers(0, 97, length), start, True) for length, start in shapes])


def other(build: Build, family: str) -> PreTrainedModel:
    """A model of the same shape whose blocks differ."""
    model = build(family)
    with torch.no_grad():
        for parameter in interventions.blocks(model).parameters():
            parameter.copy_(parameter.flip(0))
    return model


@torch.no_grad()
def test_own_states_change_nothing(family: str, tiny_model: Build) -> None:
    model, rows = tiny_model(family), batch()
    plain = answer_logits(model, rows)
    for block, states in enumerate(block_states(model, rows)):
        with overwritten(model, block, rows.index, states):
            assert torch.equal(answer_logits(model, rows), plain)
    assert torch.equal(answer_logits(model, rows), plain)  # no hook is left


@torch.no_grad()
def test_the_last_states_decode_to_the_models_own_output(family: str, tiny_model: Build) -> None:
    """So they are those before the final norm, and all that a family does to its logits is applied."""
    model, rows = tiny_model(family), batch()
    last = block_states(model, rows)[-1]
    assert_close(decoded_logp(model, last, rows.labels), forward(model, rows).logp, terms=PASS)
    assert torch.isfinite(model(rows.input_ids).logits).all()  # the blocks compute again


@pytest.mark.slow
@torch.no_grad()
def test_a_patch_of_the_last_block_is_the_logit_lens(family: str, tiny_model: Build) -> None:
    model = tiny_model(family)
    rows, _ = without_padding(model, batch())  # as `forward` runs them
    states = block_states(other(tiny_model, family), rows)
    with overwritten(model, -1, rows.index, states[-1]):
        patched = forward(model, rows).logp
    assert (patched - forward(model, rows).logp).abs().max() > 0.1
    assert_close(decoded_logp(model, states[-1], rows.labels), patched, terms=PASS)


@pytest.mark.slow
@torch.no_grad()
def test_only_the_chosen_positions_are_overwritten(family: str, tiny_model: Build) -> None:
    model, rows = tiny_model(family), batch()
    index = rows.index[-1:]  # the last position of the last row: no later one reads it
    states = block_states(other(tiny_model, family), replace(rows, index=index))[0]
    before = model(rows.input_ids).logits.flatten(0, 1)
    with overwritten(model, 0, index, states):
        after = model(rows.input_ids).logits.flatten(0, 1)
    changed = (before != after).any(-1).nonzero()[:, 0]
    assert changed.tolist() == index.tolist()


@torch.no_grad()
def test_the_hidden_states_of_transformers_end_with_a_normed_one(tiny_model: Build) -> None:
    model: Any
    model, rows = tiny_model("llama"), batch()
    hidden = model(rows.input_ids, output_hidden_states=True).hidden_states
    picked = [states.flatten(0, 1)[rows.index] for states in hidden[1:]]
    first, last = block_states(model, rows)
    assert_close(first, picked[0], terms=PASS)
    norm = model.base_model.norm
    assert_close(norm(last), picked[1], terms=PASS)
    assert (last - picked[1]).abs().max() > 0.1


@torch.no_grad()
def test_decoding_in_parts(monkeypatch: pytest.MonkeyPatch, tiny_model: Build) -> None:
    model, rows = tiny_model("gemma2"), batch()
    (states, _) = block_states(model, rows)
    whole = decoded_logp(model, states, rows.labels)
    monkeypatch.setattr(module, "_LOGITS", 2 * 97)
    assert_close(decoded_logp(model, states, rows.labels), whole, terms=PASS)
    none = decoded_logp(model, states[:0], rows.labels[:0])
    assert none.shape == (0,)


@torch.no_grad()
def test_decoding_of_a_llama_by_hand(tiny_model: Build) -> None:
    model: Any
    model, rows = tiny_model("llama"), batch()
    states = block_states(model, rows)[0]

    def by_hand(hidden: Tensor) -> Tensor:
        rms = hidden * (hidden.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
        return token_logp(rms * model.base_model.norm.weight @ model.lm_head.weight.T, rows.labels)

    assert_close(decoded_logp(model, states, rows.labels), by_hand(states), terms=PASS)


def test_edits_count_in_states_and_are_not_decoded(tiny_model: Build) -> None:
    model, rows = tiny_model("llama"), batch()
    plain = block_states(model, rows)[0]
    edit = interventions.make({"name": "grun", "layers": [0], "width": 8}, hidden_size=32, layers=2)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.fill_(0.1)
    edit.attach(model)
    assert not torch.equal(block_states(model, rows)[0], plain)
    with pytest.raises(UserError, match="intervention inside"):
        decoded_logp(model, plain, rows.labels)
