"""Which examples make step s, how they are dealt to processes, and how they become tensors.

Everything here is a pure function of its arguments, so every process computes the same plan and a resumed
run continues it: which examples make a step follows from (seed, step) alone, never from the hardware.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unlearn.data.tokenization import TokenSequence


@dataclass(frozen=True)
class Schedule:
    """Which rows of each group make each step.

    The `anchor` group is gone through in shuffled epochs; its last batch of an epoch may be smaller. Every
    other group gives as many rows as the anchor, from its own shuffled stream, so that over the run each of
    its rows is met as often as any other (to within one).
    """

    sizes: Mapping[str, int]
    anchor: str
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.sizes[self.anchor] // self.batch)

    def rows(self, step: int) -> dict[str, list[tuple[int, int]]]:
        """Rows of each group in the step (counted from 0), with how often each was met before."""
        epoch, k = divmod(step, self.steps_per_epoch)
        n = self.sizes[self.anchor]
        start, stop = k * self.batch, min((k + 1) * self.batch, n)
        return {
            group: [self._stream(group, epoch * n + i) for i in range(start, stop)] for group in self.sizes
        }

    def _stream(self, group: str, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.sizes[group])
        return int(_permutation(self.sizes[group], self.seed, group, epoch)[place]), epoch


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
    """Deal sequences to ranks and micro-batches: `result[rank][micro]` lists positions in `lengths`.

    Sequences of like length share a micro-batch, none is larger than `max_tokens` (rows × longest, padding
    included; a single longer sequence goes alone) or `max_rows`, every rank has the same number of them
    (collectives need that), and the costs of one round are alike over the ranks. Some of the last round may
    be empty.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    ordered = [lengths[i] for i in order]
    most_tokens, most_rows = max_tokens or len(ordered) * max(ordered, default=0), max_rows or len(ordered)
    cuts = _cut(ordered, most_tokens, most_rows)
    rounds = max(1, -(-len(cuts) // ranks))
    cuts = _spread(ordered, cuts, rounds * ranks, most_tokens, most_rows)
    bins = [order[a:b] for a, b in cuts]
    bins += [[] for _ in range(rounds * ranks - len(bins))]
    return [[bins[i * ranks + rank] for i in range(rounds)] for rank in range(ranks)]


def _cut(ordered: Sequence[int], max_tokens: int, max_rows: int) -> list[tuple[int, int]]:
    """Greedy contiguous cuts of lengths in descending order."""
    cuts, start = [], 0
    for i in range(len(ordered)):
        if i > start and ((i - start + 1) * ordered[start] > max_tokens or i - start >= max_rows):
            cuts.append((start, i))
            start = i
    return [*cuts, (start, len(ordered))] if ordered else []


def _spread(
    ordered: Sequence[int], cuts: list[tuple[int, int]], bins: int, max_tokens: int, max_rows: int
) -> list[tuple[int, int]]:
    """Cut into at most `bins` parts with the smallest largest cost: the work of the ranks evened out."""
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


# Shapes: B sequences, T input positions, N answer tokens of all sequences together.
@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and where the answers are, flat.

    `input_ids` [B, T]; T is the longest sequence − 1 (nothing follows a last token) unless more was asked
    for. `index` [N] are the positions in the flattened [B·T] whose output predicts an answer token, `labels`
    [N] those tokens, `lengths` [B] how many belong to each sequence, in order. Shift and mask end here.
    `prompt_end` [B] is the position of the last token before the answer, `widths` [B] the real tokens of each
    row. `attention_mask` [B, T] is needed only where the output at padding counts.
    """

    input_ids: Tensor
    index: Tensor
    labels: Tensor
    lengths: Tensor
    prompt_end: Tensor
    widths: Tensor
    attention_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return replace(self, **{name: t.to(device) for name, t in moved.items() if t is not None})


def collate(
    sequences: Sequence[TokenSequence],
    pad_id: int = 0,
    *,
    width: int | None = None,
    attention_mask: bool = False,
) -> Batch:
    """Token sequences to one batch: without their last token, which nothing follows, unless a `width` with
    room for all of them is given."""
    last = 0 if width is None else 1  # whether the last token of a sequence goes in
    if width is None:
        width = max(len(s.ids) for s in sequences) - 1
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    for row, s in enumerate(sequences):
        ids[row, : len(s.ids) - 1 + last] = s.ids[: len(s.ids) - 1 + last]
    widths = torch.tensor([len(s.ids) - 1 + last for s in sequences])
    where = positions(sequences, width)
    return Batch(
        input_ids=torch.from_numpy(ids),
        index=where.index,
        labels=where.labels,
        lengths=where.lengths,
        prompt_end=torch.tensor([s.answer_start - 1 for s in sequences]),
        widths=widths,
        attention_mask=(torch.arange(width) < widths[:, None]).long() if attention_mask else None,
    )


@dataclass(frozen=True)
class Positions:
    """Some positions of a batch: `index` [N] into the flattened [B·T], what follows them, `lengths` [B]."""

    index: Tensor
    labels: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> Positions:
        return Positions(self.index.to(device), self.labels.to(device), self.lengths.to(device))


def positions(
    sequences: Sequence[TokenSequence], width: int, *, first_row: int = 0, mask: str = "answer",
    skip: int = 0, all_width: int = 0,
) -> Positions:  # fmt: skip
    """The positions of a batch `width` wide, whose rows from `first_row` on these sequences are, that a mask
    picks.

    `answer`: those that predict an answer token, without the first `skip` of them. `attention`: every token
    of the sequence. `all`: those and the padding, up to `all_width`. Past the end of a sequence no token
    follows: the label is −1.
    """
    index, labels, lengths = [], [], []
    for row, s in enumerate(sequences, start=first_row):
        if mask == "answer":
            start, stop = min(s.answer_start - 1 + skip, len(s.ids) - 1), len(s.ids) - 1
        else:
            start, stop = 0, len(s.ids) if mask == "attention" else all_width
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
    """How many positions of one sequence a mask picks."""
    if mask == "answer":
        return max(0, sequence.answer_length - skip)
    return len(sequence.ids) if mask == "attention" else all_width
