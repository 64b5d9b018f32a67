"""Choose the examples of step s, distribute them over processes, and collate them into tensors.

All functions are pure, so every process computes the same plan and a resumed run continues it: the examples
of a step depend on (seed, step) alone, never on the hardware.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearn.data.tokenization import TokenSequence


@dataclass(frozen=True)
class Schedule:
    """The rows of each group that make each step.

    The `anchor` group is visited in shuffled epochs; the last batch of an epoch may be smaller. Every other
    group contributes as many rows as the anchor, from its own shuffled stream, so that over the run all its
    rows are visited equally often (to within one).
    """

    sizes: Mapping[str, int]
    anchor: str
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.sizes[self.anchor] // self.batch)

    def rows(self, step: int) -> dict[str, list[tuple[int, int]]]:
        """Return each group's rows in a step (counted from 0), with the number of their earlier visits."""
        epoch, k = divmod(step, self.steps_per_epoch)
        n = self.sizes[self.anchor]
        start, stop = k * self.batch, min((k + 1) * self.batch, n)
        return {
            group: [self._stream(group, epoch * n + i) for i in range(start, stop)] for group in self.sizes
        }

    def _stream(self, group: str, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.sizes[group])
        return int(_permutation(self.sizes[group], self.seed, group, epoch)[offset]), epoch


_PERMUTATIONS: dict[tuple[int, int, str, int], np.ndarray] = {}


def _permutation(n: int, seed: int, group: str, epoch: int) -> np.ndarray:
    key = (n, seed, group, epoch)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 16:
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, zlib.crc32(group.encode()), epoch]).permutation(n)
    return _PERMUTATIONS[key]


def deal(
    lengths: Sequence[int], ranks: int, *, max_tokens: int | None = None, max_rows: int | None = None
) -> list[list[list[int]]]:
    """Distribute sequences over ranks and micro-batches: `result[rank][micro]` lists positions in `lengths`.

    Sequences of similar length share a micro-batch. None is larger than `max_tokens` (rows × longest, padding
    included; a longer sequence has its own micro-batch) or `max_rows`. Every rank has the same number of
    micro-batches, as collectives need, and the ranks' costs in one round are similar. Some micro-batches of
    the last round may be empty.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    ordered = [lengths[i] for i in order]
    max_tokens, max_rows = max_tokens or len(ordered) * max(ordered, default=0), max_rows or len(ordered)
    cuts = _cut(ordered, max_tokens, max_rows)
    rounds = max(1, -(-len(cuts) // ranks))
    cuts = _balance(ordered, cuts, rounds * ranks, max_tokens, max_rows)
    bins = [order[a:b] for a, b in cuts]
    bins += [[] for _ in range(rounds * ranks - len(bins))]
    return [[bins[i * ranks + rank] for i in range(rounds)] for rank in range(ranks)]


def _cut(ordered: Sequence[int], max_tokens: int, max_rows: int) -> list[tuple[int, int]]:
    """Cut lengths in descending order into contiguous parts, greedily."""
    cuts, start = [], 0
    for i in range(len(ordered)):
        if i > start and ((i - start + 1) * ordered[start] > max_tokens or i - start >= max_rows):
            cuts.append((start, i))
            start = i
    return [*cuts, (start, len(ordered))] if ordered else []


def _balance(
    ordered: Sequence[int], cuts: list[tuple[int, int]], bins: int, max_tokens: int, max_rows: int
) -> list[tuple[int, int]]:
    """Cut into at most `bins` parts so that the largest cost is smallest: balance the work of the ranks."""
    if len(cuts) <= 1 and bins == 1:
        return cuts
    low, high = 1, max((b - a) * ordered[a] for a, b in cuts) if cuts else 1
    while low < high:
        middle = (low + high) // 2
        tried = _cut(ordered, middle, max_rows)
        fits = len(tried) <= bins and all((b - a) * ordered[a] <= middle for a, b in tried)
        low, high = (low, middle) if fits else (middle + 1, high)
    cuts = _cut(ordered, min(high, max_tokens), max_rows)
    while len(cuts) < min(bins, len(ordered)):
        widest = max(range(len(cuts)), key=lambda i: (cuts[i][1] - cuts[i][0], -i))
        a, b = cuts[widest]
        cuts[widest : widest + 1] = [(a, (a + b) // 2), ((a + b) // 2, b)]
    return cuts


class Piece(NamedTuple):
    """Adjacent tokens of a row, each of which attends to itself and to those before it in the piece.

    `after`: the number of an earlier piece that all of its tokens attend to as well (a prompt).
    """

    length: int
    after: int | None = None


# Shapes: B sequences, T input positions, N answer tokens of all sequences together.
@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, and the flat positions of the answers.

    `input_ids` [B, T]; T is the length of the longest sequence − 1 (nothing follows a last token) unless a
    width was set. `index` [N] are the positions in the flattened [B·T] whose output predicts an answer token,
    `labels` [N] those tokens, `lengths` [B] the number of answer tokens of each sequence. Other code needs
    neither shift nor mask. `prompt_end` [B] is the position of the last token before the answer, `widths` [B]
    the number of real tokens of each row. `attention_mask` [B, T] is needed only where the output at padding
    counts, or is added to the scores, [B, 1, T, T], where several answers share a row.

    Without padding there is one row [1, T] in `pieces`, with `position_ids` [1, T]
    (`unlearn.passes.unpadded`).
    """

    input_ids: Tensor
    index: Tensor
    labels: Tensor
    lengths: Tensor
    prompt_end: Tensor
    widths: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    pieces: tuple[Piece, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        moved: dict[str, Any] = {name: t.to(device) for name, t in values if isinstance(t, Tensor)}
        return replace(self, **moved)


def collate(
    sequences: Sequence[TokenSequence],
    pad_id: int = 0,
    *,
    width: int | None = None,
    attention_mask: bool = False,
) -> Batch:
    """Collate token sequences into one batch.

    Their last tokens, which nothing follows, are left out unless a `width` with room for them is set.
    """
    last = 0 if width is None else 1  # 1: keep the last token of a sequence
    if width is None:
        width = max(len(s.ids) for s in sequences) - 1
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    for row, s in enumerate(sequences):
        ids[row, : len(s.ids) - 1 + last] = s.ids[: len(s.ids) - 1 + last]
    widths = torch.tensor([len(s.ids) - 1 + last for s in sequences])
    answers = positions(sequences, width)
    return Batch(
        input_ids=torch.from_numpy(ids),
        index=answers.index,
        labels=answers.labels,
        lengths=answers.lengths,
        prompt_end=torch.tensor([s.answer_start - 1 for s in sequences]),
        widths=widths,
        attention_mask=(torch.arange(width) < widths[:, None]).long() if attention_mask else None,
    )


@dataclass(frozen=True)
class Positions:
    """Some positions of a batch: `index` [N] in the flattened [B·T], the next tokens `labels` [N], and the
    number of positions of each sequence, `lengths` [B].
    """

    index: Tensor
    labels: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> Positions:
        return Positions(self.index.to(device), self.labels.to(device), self.lengths.to(device))


def positions(
    sequences: Sequence[TokenSequence], width: int, *, first_row: int = 0, mask: str = "answer",
    skip: int = 0, all_width: int = 0,
) -> Positions:  # fmt: skip
    """Return the positions that a mask selects in a batch of this `width`; the sequences are its rows from
    `first_row` on.

    `answer`: positions that predict an answer token, without the first `skip` of them. `prompt`: every token
    before the answer. `attention`: every token of the sequence. `all`: every token and the padding, up to
    `all_width`. Where no token follows, the label is −1.
    """
    index, labels, lengths = [], [], []
    for row, s in enumerate(sequences, start=first_row):
        if mask == "answer":
            start, stop = min(s.answer_start - 1 + skip, len(s.ids) - 1), len(s.ids) - 1
        else:
            start, stop = 0, {"prompt": s.answer_start, "attention": len(s.ids), "all": all_width}[mask]
        known = s.ids[start + 1 : stop + 1]
        index.append(row * width + np.arange(start, stop))
        labels.append(np.pad(known, (0, stop - start - len(known)), constant_values=-1))
        lengths.append(stop - start)
    return Positions(
        torch.from_numpy(np.concatenate(index)),
        torch.from_numpy(np.concatenate(labels)),
        torch.tensor(lengths),
    )


def count(sequence: TokenSequence, *, mask: str, skip: int, all_width: int) -> int:
    """Count the positions of one sequence that a mask selects."""
    if mask == "answer":
        return max(0, sequence.answer_length - skip)
    return {"prompt": sequence.answer_start, "attention": len(sequence.ids), "all": all_width}[mask]
