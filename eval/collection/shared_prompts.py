"""Answers to one question in one row: the prompt is computed once, and the answers branch off it.

A row holds the prompt and then the answers; each answer's tokens see the prompt and themselves, and count
their positions from the prompt's end, so every one is scored as if it stood there alone (tree attention).
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
    """Sequences by their numbers, with one prompt; `width` input tokens."""

    members: tuple[int, ...]
    width: int


def rows_of(sequences: Sequence[TokenSequence], *, shared: bool) -> list[Row]:
    """Rows of sequences that have the same prompt; without `shared` a row each."""
    alone = [Row((i,), len(s.ids) - 1) for i, s in enumerate(sequences)]
    if not shared:
        return alone
    groups: dict[bytes, list[int]] = {}
    for i, s in enumerate(sequences):
        groups.setdefault(s.ids[: s.answer_start].tobytes(), []).append(i)
    found = []
    for members in groups.values():
        prompt = sequences[members[0]].answer_start
        row: list[int] = []
        width = prompt
        for i in members:
            more = sequences[i].answer_length - 1
            if row and width + more > _MAX_WIDTH:
                found.append(Row(tuple(row), width))
                row, width = [], prompt
            row.append(i)
            width += more
        found.append(Row(tuple(row), width))
    return found


def collate_rows(sequences: Sequence[TokenSequence], rows: Sequence[Row]) -> tuple[Batch, dict[str, Tensor]]:
    """A batch of the rows, its `lengths` those of the answers in order, and what the model is told beside its
    ids: positions [B, T] and the tree's mask [B, 1, T, T], True where a token may look."""
    width = max(row.width for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    place = np.zeros((len(rows), width), dtype=np.int64)
    owner = np.full((len(rows), width), -1)  # 0: prompt, 1…: which answer, −1: padding
    index, labels, lengths, ends = [], [], [], []
    for r, row in enumerate(rows):
        first = sequences[row.members[0]]
        start = first.answer_start
        ids[r, :start], place[r, :start], owner[r, :start] = first.ids[:start], np.arange(start), 0
        at = start
        for branch, i in enumerate(row.members, start=1):
            answer = sequences[i].ids[start:]
            n = len(answer)
            ids[r, at : at + n - 1], owner[r, at : at + n - 1] = answer[:-1], branch
            place[r, at : at + n - 1] = np.arange(start, start + n - 1)
            index.append(r * width + np.concatenate([[start - 1], np.arange(at, at + n - 1)]))
            labels.append(answer)
            lengths.append(n)
            at += n - 1
        ends.append(start - 1)
    owners = torch.from_numpy(owner)
    same = owners[:, :, None] == owners[:, None, :]
    looks = (same | (owners == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    batch = Batch(
        input_ids=torch.from_numpy(ids),
        index=torch.from_numpy(np.concatenate(index)),
        labels=torch.from_numpy(np.concatenate(labels)),
        lengths=torch.tensor(lengths),
        prompt_end=torch.tensor(ends),
        widths=torch.tensor([row.width for row in rows]),
    )
    return batch, {"position_ids": torch.from_numpy(place), "attention_mask": looks[:, None]}
