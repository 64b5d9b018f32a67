"""The parts of a pass that a process computes, where the calls of the model may be collectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unlearn.distributed import World
from unlearn.passes.out_of_memory import Bins


def turns(world: World, bins: Bins, counts: Sequence[int]) -> Iterator[tuple[list[int], list[int], int]]:
    """Yield this process's parts of a pass, what to call the model on, and a limit. A collective.

    The limit is the largest sum of `counts` that any process has in that turn. Where the calls are
    collectives, a process without a part of its own calls the model on the first sequence, and drops what it
    gets.
    """
    for turn, part in enumerate(world.mine(bins)):
        together = [each[turn] or [0] for each in bins] if world.collective_forward else [part]
        yield part, part or [0], max(sum(counts[i] for i in each) for each in together)
