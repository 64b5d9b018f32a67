"""The contract between a training and a rule that chooses among its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Candidate:
    """A step whose model was measured; NaN for what could not be measured."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """The chosen step; without `met` no step meets the rule, and it is the last one.

    `moves`: it is the last step so far, and will be the next one; no model of it must be kept.
    """

    step: int
    met: bool
    moves: bool = False


class Selector(Protocol):
    """A rule with all its numbers. `keys` are the metrics it reads, `description` what is written of it."""

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def description(self) -> Mapping[str, Any]: ...

    def __call__(self, candidates: Sequence[Candidate]) -> Choice:
        """Choose among the steps so far, at least one, in their order."""
        ...


def needed(
    candidates: Sequence[Candidate],
    choose: Callable[[Sequence[Candidate]], Choice],
    checkpoints: Iterable[int],
) -> set[int]:
    """Return the steps whose models must stay: what is chosen now, and in a training that continues from a
    checkpoint, which measures the later steps again.

    A choice that moves on with the last step needs none.
    """
    continued = ([each for each in candidates if each.step < step] for step in checkpoints)
    choices = [choose(each) for each in (candidates, *continued) if each]
    return {choice.step for choice in choices if not choice.moves}
