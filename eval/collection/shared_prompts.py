"""Answers to one question in one row, so that their prompt is computed once (tree attention).

A row holds the prompt and then the answers. The tokens of an answer attend to the prompt and to that answer
only, and their positions follow the prompt's end, so that each answer is scored as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearn.data.batching import Batch, Piece
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


def collate_rows(
    sequences: Sequence[TokenSequence], rows: Sequence[Row], *, dtype: torch.dtype, in_pieces: bool
) -> Batch:
    """Collate the rows into a batch; its `lengths` are those of the answers, in order.

    in_pieces: one row [1, T] in pieces; otherwise right-padded rows [B, T] and a tree mask of this dtype.
    """
    laid = [_lay(sequences, row) for row in rows]
    widths = torch.tensor([row.width for row in rows])
    ends = torch.tensor([sequences[row.members[0]].answer_start - 1 for row in rows])
    width = int(widths.max())
    first = np.cumsum([0, *widths[:-1]]) if in_pieces else width * np.arange(len(rows))
    index = np.concatenate([start + row.places for start, row in zip(first, laid, strict=True)])
    columns = [(row.ids, row.position, row.owner) for row in laid]
    if in_pieces:
        ids, position, _ = (
            torch.from_numpy(np.concatenate(each))[None] for each in zip(*columns, strict=True)
        )
        mask, pieces = None, _pieces(laid)
    else:
        ids, position, owner = (
            _padded(each, width, fill)
            for each, fill in zip(zip(*columns, strict=True), (0, 0, -1), strict=True)
        )
        mask, pieces = _tree_mask(owner, dtype), ()
    return Batch(
        input_ids=ids,
        index=torch.from_numpy(index),
        labels=torch.from_numpy(np.concatenate([row.labels for row in laid])),
        lengths=torch.tensor([n for row in laid for n in row.lengths]),
        prompt_end=ends,
        widths=widths,
        attention_mask=mask,
        position_ids=position,
        pieces=pieces,
    )


class _Laid(NamedTuple):
    """One row: ids, positions and owners (0: the prompt, 1…: which answer) of its tokens; the places that
    predict an answer token, and those tokens; the number of tokens of each answer.
    """

    ids: np.ndarray
    position: np.ndarray
    owner: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    lengths: list[int]


def _lay(sequences: Sequence[TokenSequence], row: Row) -> _Laid:
    first = sequences[row.members[0]]
    start = at = first.answer_start
    ids, position, owner = [first.ids[:start]], [np.arange(start)], [np.zeros(start, dtype=np.int64)]
    places, labels, lengths = [], [], []
    for branch, i in enumerate(row.members, start=1):
        answer = sequences[i].ids[start:]
        n = len(answer)
        ids.append(answer[:-1])
        position.append(np.arange(start, start + n - 1))
        owner.append(np.full(n - 1, branch))
        places.append(np.concatenate([[start - 1], np.arange(at, at + n - 1)]))
        labels.append(answer)
        lengths.append(n)
        at += n - 1
    return _Laid(_joined(ids), _joined(position), _joined(owner), _joined(places), _joined(labels), lengths)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64)


def _padded(rows: Sequence[np.ndarray], width: int, fill: int) -> Tensor:
    """Return the rows, filled up to a width, [B, width]."""
    filled = [np.pad(row, (0, width - len(row)), constant_values=fill) for row in rows]
    return torch.from_numpy(np.stack(filled))


def _tree_mask(owner: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores [B, 1, T, T]: 0 where a token may attend."""
    width = owner.shape[1]
    same = owner[:, :, None] == owner[:, None, :]
    visible = (same | (owner == 0)[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape, dtype=dtype)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _pieces(rows: Sequence[_Laid]) -> tuple[Piece, ...]:
    """Return the prompts and answers of all rows; the prompt of a single answer is one piece with it."""
    pieces: list[Piece] = []
    for row in rows:
        if len(row.lengths) == 1:
            pieces.append(Piece(len(row.ids)))
            continue
        prompt = len(pieces)
        pieces.append(Piece(int((row.owner == 0).sum())))
        pieces += [Piece(n - 1, after=prompt) for n in row.lengths if n > 1]
    return tuple(pieces)
