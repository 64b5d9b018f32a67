"""This process's part of a pass, and how the parts come together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import distributed_c10d

T = TypeVar("T")

_PASSES = count()  # passes so far; as they are collectives, every process has counted the same


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `world`.

    With `synced` every process must call the model equally often, because each call is a collective
    (parameters sharded by ZeRO-3).
    """

    rank: int = 0
    world: int = 1
    synced: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, bins: Sequence[Sequence[list[int]]]) -> Iterator[list[int]]:
        """The parts of a pass, dealt as `bins[rank][round]`, that this process does; each is done by one.

        Synced, its own of every round, empty ones too; otherwise whoever is free takes the next that is not
        empty, and none waits for another. A collective.
        """
        if self.synced:
            yield from bins[self.rank]
            return
        parts = [part for each in zip(*bins, strict=True) for part in each if part]
        if self.world == 1:
            yield from parts
            return
        key, store = f"unlearn/pass/{next(_PASSES)}", distributed_c10d._get_default_store()
        while (turn := store.add(key, 1) - 1) < len(parts):
            yield parts[turn]

    def gather(self, part: list[T]) -> list[T]:
        """The parts of all processes, in the order of their ranks; a collective."""
        if self.world == 1:
            return part
        parts: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, part)
        return [value for each in parts for value in each]

    def from_first(self, part: list[T]) -> list[T]:
        """The list of the first process, on all of them; a collective."""
        return self.gather(part if self.first else [])


ALONE = Shard()
