"""Answers that branch off one prompt are scored as if each stood alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from eval.collection.live_model import Live
from eval.collection.shared_prompts import collate_rows, rows_of
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, assert_close
from unlearn.data.batching import Piece, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.passes.forward import record

SMALL: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, num_key_value_heads=1, head_dim=16, final_logit_softcapping=5.0, sliding_window=512
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    ),
    "opt": lambda: transformers.OPTConfig(**SMALL | {"bos_token_id": 1}, ffn_dim=64, word_embed_proj_dim=32),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, num_key_value_heads=2),
    "phi": lambda: transformers.PhiConfig(**SMALL),
    # ALiBi and a recurrent state: neither has an input for the position of a token.
    "bloom": lambda: transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
}
SHARING = {"llama", "gemma2", "gpt2", "opt", "qwen2", "phi"}


def answers_of_all() -> list[tuple[str | None, str]]:
    """Eleven questions with four answers each, and two plain texts."""
    pairs: list[tuple[str | None, str]] = []
    for e in examples("forget"):
        pairs += [(e.question, text) for text in (e.answer, e.paraphrased_answer or "", *e.perturbed_answers)]
    return [*pairs, (None, "Oslo lies by the sea."), (None, "Bern does not.")]


def live(net: torch.nn.Module, tmp_path, max_tokens: int = 400) -> Live:
    return Live(net, encoder(), tmp_path, max_tokens=max_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_what_one_answer_at_a_time_gives(family, tmp_path):
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sequences = encoder().pairs(answers_of_all())
    reader = live(net, tmp_path)
    found = reader.read(sequences)
    assert reader.shares_prompts is (family in SHARING)
    for i, sequence in enumerate(sequences):
        alone = record(net, collate([sequence]))
        for name in ("logp", "mean", "variance"):
            assert_close(found[name][i], getattr(alone, name), terms=PASS)
        np.testing.assert_array_equal(found["correct"][i], alone.correct)


def test_a_prompt_is_computed_once(tmp_path):
    seen = []
    net = model()
    net.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
    sequences = encoder().pairs(answers_of_all())
    reader = live(net, tmp_path, max_tokens=10_000)
    reader.read(sequences)
    trial = len(seen) - 1
    rows = rows_of(sequences, shared=True)
    # "It" does not merge with the space before it and the names do: one prompt is a token longer.
    assert [row.members for row in rows[:2]] == [(0, 2, 3), (1,)]
    assert [len(row.members) for row in rows] == [3, 1] * 11 + [1, 1]
    assert seen[trial].shape == (1, sum(row.width for row in rows))
    first = [sequences[i] for i in (0, 2, 3)]
    assert rows[0].width == first[0].answer_start + sum(s.answer_length - 1 for s in first)
    seen.clear()
    reader.read(sequences)  # the trial is made once
    assert len(seen) == 1


def test_the_tree_by_hand():
    # Prompt 5 6, answers 7 8 9 and 4 9: the last token of each predicts nothing.
    one, two = (TokenSequence(np.array([5, 6, *a]), 2, True) for a in ([7, 8, 9], [4, 9]))
    (row,) = rows_of([one, two], shared=True)
    whole, pieces = (
        collate_rows([one, two], [row], dtype=torch.float32, in_pieces=each) for each in (False, True)
    )
    for batch in (whole, pieces):
        assert batch.input_ids.tolist() == [[5, 6, 7, 8, 4]]
        assert batch.position_ids is not None
        assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
        assert batch.index.tolist() == [1, 2, 3, 1, 4]
        assert batch.labels.tolist() == [7, 8, 9, 4, 9]
        assert batch.lengths.tolist() == [3, 2]
    assert whole.attention_mask is not None
    looks = ["10000", "11000", "11100", "11110", "11001"]
    assert (whole.attention_mask[0, 0] == 0).int().tolist() == [[int(c) for c in line] for line in looks]
    assert (pieces.attention_mask, pieces.pieces) == (None, (Piece(2), Piece(2, 0), Piece(1, 0)))


def test_long_answers_of_one_prompt_are_cut_into_rows():
    many = [TokenSequence(np.arange(301) + k, 1, True) for k in range(3)]
    for sequence in many:
        sequence.ids[0] = 7
    rows = rows_of(many, shared=True)
    assert [row.members for row in rows] == [(0,), (1,), (2,)]  # two would be 1 + 2·299 > 512 wide
    assert [row.width for row in rows] == [300] * 3
    shorter = [TokenSequence(s.ids[:200], 1, True) for s in many]
    assert [row.members for row in rows_of(shorter, shared=True)] == [(0, 1), (2,)]


def test_no_answer_makes_no_pass(tmp_path):
    found = live(model(), tmp_path).read([])
    assert all(len(values) == 0 for values in found.values())
