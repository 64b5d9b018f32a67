"""Answers to one question in one row, so that their prompt is computed once (tree attention).

A row holds the prompt and then the answers. The tokens of an answer attend to the prompt and to that answer
only, and their positions follow the prompt's end, so that each answer is scored as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlearn.data.batching import Batch
from unlearn.data.tokenization import TokenSequence

# A longer row costs more in attention than its prompt saves.
_MAX_WIDTH = 512


@dataclass(frozen=True)
class Row:
    """The numbers of sequences with the same prompt; `width` is the row's number of input tokens."""

    members: tuple[int, ...]
    width: int


def rows_of(sequences: Sequence[TokenSequence], *, shared: bool) -> list[Row]:
    """Group sequences with the same prompt into rows; without `shared`, one row each."""
    alone = [Row((i,), len(s.ids) - 1) for i, s in enumerate(sequences)]
    if not shared:
        return alone
    groups: dict[bytes, list[int]] = {}
    for i, s in enumerate(sequences):
        groups.setdefault(s.ids[: s.answer_start].tobytes(), []).append(i)
    rows = []
    for members in groups.values():
        prompt = sequences[members[0]].answer_start
        row: list[int] = []
        width = prompt
        for i in members:
            more = sequences[i].answer_length - 1
            if row and width + more > _MAX_WIDTH:
                rows.append(Row(tuple(row), width))
                row, width = [], prompt
            row.append(i)
            width += more
        rows.append(Row(tuple(row), width))
    return rows


def collate_rows(sequences: Sequence[TokenSequence], rows: Sequence[Row]) -> tuple[Batch, dict[str, Tensor]]:
    """Collate the rows into a batch, and return the model's further inputs.

    The batch's `lengths` are those of the answers, in order. The inputs are position ids [B, T] and the tree
    mask [B, 1, T, T], True where a token may attend.
    """
    width = max(row.width for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    position = np.zeros((len(rows), width), dtype=np.int64)
    owner = np.full((len(rows), width), -1)  # 0: prompt, 1…: which answer, −1: padding
    index, labels, lengths, ends = [], [], [], []
    for r, row in enumerate(rows):
        first = sequences[row.members[0]]
        start = first.answer_start
        ids[r, :start], position[r, :start], owner[r, :start] = first.ids[:start], np.arange(start), 0
        at = start
        for branch, i in enumerate(row.members, start=1):
            answer = sequences[i].ids[start:]
            n = len(answer)
            ids[r, at : at + n - 1], owner[r, at : at + n - 1] = answer[:-1], branch
            position[r, at : at + n - 1] = np.arange(start, start + n - 1)
            index.append(r * width + np.concatenate([[start - 1], np.arange(at, at + n - 1)]))
            labels.append(answer)
            lengths.append(n)
            at += n - 1
        ends.append(start - 1)
    owners = torch.from_numpy(owner)
    same = owners[:, :, None] == owners[:, None, :]
    visible = (same | (owners == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    batch = Batch(
        input_ids=torch.from_numpy(ids),
        index=torch.from_numpy(np.concatenate(index)),
        labels=torch.from_numpy(np.concatenate(labels)),
        lengths=torch.tensor(lengths),
        prompt_end=torch.tensor(ends),
        widths=torch.tensor([row.width for row in rows]),
    )
    return batch, {"position_ids": torch.from_numpy(position), "attention_mask": visible[:, None]}
