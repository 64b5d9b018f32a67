"""Rows in pieces against the same rows padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tests.rows import rows_in_pass
from tests.tolerance import PASS, assert_close
from unlearn.data.batching import Batch, Piece, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.passes.forward import ForwardRequest, answer_logits, read, record, states
from unlearn.passes.token_logp import token_logp
from unlearn.passes.unpadded import in_pieces, runs_unpadded, without_padding

Build = Callable[[str], PreTrainedModel]
PADDED = {"gemma2", "mistral"}
"""Of the families of the fixture, those whose attention sees a window or caps its scores."""


def batch() -> Batch:
    rng = np.random.default_rng(0)
    shapes = [(9, 3), (5, 1), (14, 10), (2, 1)]
    return collate([TokenSequence(rng.integers(0, 97, length), start, True) for length, start in shapes])


def test_each_family_gives_and_learns_what_padded_rows_give(family: str, tiny_model: Build) -> None:
    model, rows = tiny_model(family), batch()
    assert runs_unpadded(model) is (family not in PADDED)
    wanted = token_logp(answer_logits(model, rows), rows.labels)
    wanted.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )

    (found,) = read(model, rows, [ForwardRequest(rows.index, rows.labels, logp=True, layers=(1,))])
    found["logp"].sum().backward()

    assert shapes[-1:] == [(4, 13) if family in PADDED else (1, 8 + 4 + 13 + 1)]
    assert_close(found["logp"], wanted, terms=PASS)
    assert_close(record(model, rows).logp, wanted, terms=PASS)
    largest = max(float(each.abs().max()) for each in gradients.values() if each is not None)
    for name, p in model.named_parameters():
        assert_close(p.grad, gradients[name], terms=PASS, scale=largest, named=name)
    whole = model(input_ids=rows.input_ids, output_hidden_states=True).hidden_states[1].flatten(0, 1)
    assert_close(found["hidden/1"], whole[rows.index], terms=PASS)
    assert_close(states(model, rows, rows.index, 1), whole[rows.index], terms=PASS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gradients_in_other_precisions(dtype: torch.dtype, tiny_model: Build) -> None:
    """Short pieces in bf16 have their attention in fp32; nothing else is rounded to fp32."""
    rows, exact = batch(), tiny_model("llama").double()
    model: Any = tiny_model("llama")
    model.to(dtype)
    token_logp(answer_logits(exact, rows), rows.labels).sum().backward()
    assert runs_unpadded(model)
    (found,) = read(model, rows, [ForwardRequest(rows.index, rows.labels, logp=True)])
    found["logp"].sum().backward()
    wanted = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    largest = max(float(each.abs().max()) for each in wanted.values())
    terms = PASS if dtype == torch.float64 else 1
    for name, p in model.named_parameters():
        assert_close(p.grad, wanted[name], dtype=dtype, terms=terms, scale=largest, named=name)


def test_the_row_by_hand(tiny_model: Build) -> None:
    two = [TokenSequence(np.array(ids), 1, True) for ids in ([10, 11, 12, 13], [20, 21])]
    row, place = without_padding(tiny_model("llama"), collate(two, pad_id=7))
    assert row.input_ids.tolist() == [[10, 11, 12, 20]]
    assert row.position_ids is not None
    assert row.position_ids.tolist() == [[0, 1, 2, 0]]
    assert (row.index.tolist(), row.labels.tolist()) == ([0, 1, 2, 3], [11, 12, 13, 21])
    assert row.pieces == (Piece(3), Piece(1))
    assert place is not None
    assert place[:4].tolist() == [0, 1, 2, 3]


def test_a_piece_after_another_attends_to_it_and_to_itself(tiny_model: Build) -> None:
    model = tiny_model("llama").eval()
    prompt, answers = [5, 6, 7], [[8, 9], [10, 11, 12]]
    pieces = (Piece(3), Piece(2, after=0), Piece(3, after=0))
    position = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5]])
    with torch.no_grad(), in_pieces(model, pieces):
        assert rows_in_pass() == 1
        ids = torch.tensor([[*prompt, *answers[0], *answers[1]]])
        together = model(input_ids=ids, position_ids=position, use_cache=False).logits[0]
    start = 3
    for answer in answers:
        alone = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        assert_close(together[start : start + len(answer)], alone[3:], terms=PASS)
        start += len(answer)
    assert rows_in_pass() is None
    assert model.config._attn_implementation == "sdpa"


def test_what_must_stay_padded(tiny_model: Build) -> None:
    model = tiny_model("llama")
    masked = collate([TokenSequence(np.array([1, 2, 3]), 1, True)], attention_mask=True)
    assert without_padding(model, masked) == (masked, None)
    model.gradient_checkpointing_enable()  # its second forward would not know the pieces
    assert not runs_unpadded(model)
    model.gradient_checkpointing_disable()
    assert runs_unpadded(model)
    eager: Any = tiny_model("llama")
    eager.set_attn_implementation("eager")
    assert not runs_unpadded(eager)
    bloom = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=2)
    assert not runs_unpadded(transformers.BloomForCausalLM(bloom))


def test_a_model_that_overlooks_positions_stays_padded(tiny_model: Build) -> None:
    class Blind(transformers.GPT2LMHeadModel):  # with rotary positions it would be right
        def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **rest: Any) -> Any:
            return super().forward(input_ids=input_ids, **rest)

    config: Any = tiny_model("gpt2").config
    assert not runs_unpadded(Blind(config))
