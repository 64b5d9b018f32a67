"""Batches and answers that the tests of interventions share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from unlearn.data.batching import Batch, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import ALONE
from unlearn.passes.generate import generate
from unlearn.passes.prompt_layout import Layout, laid_out

END, TOKENS = 96, 9
PROMPTS = [[5], [8, 9, 10, 11], [3, 4], [60, 61, 62, 63, 64, 65, 66]]


def batch(count: int = 6, seed: int = 7, tokens: tuple[int, int] = (0, 97)) -> Batch:
    """Random questions and answers of different lengths, of tokens from a range."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt, answer = int(rng.integers(2, 9)), int(rng.integers(1, 12))
        made.append(TokenSequence(rng.integers(*tokens, prompt + answer), prompt, ended=True))
    return collate(made)


def answers(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Greedy answers with a cache, `rows` at a time, left-padded."""
    return generate(
        model, prompts, max_new_tokens=TOKENS, end_ids=[END], pad_id=0, max_rows=rows, world=ALONE,
        device=torch.device("cpu"),
    )  # fmt: skip


def uncached(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """The same by whole forwards of one row, its layout given by hand."""
    new: list[int] = []
    while len(new) < TOKENS:
        ids = torch.tensor([[*prompt, *new]])
        layout = Layout(torch.tensor([len(prompt) - 1]), torch.ones_like(ids, dtype=torch.bool))
        with torch.no_grad(), laid_out(layout):
            token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
        if token == END:
            break
        new.append(token)
    return new
