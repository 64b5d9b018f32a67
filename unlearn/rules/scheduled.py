"""Weights of terms that change over the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from unlearn.rules import Stateless


class Scheduled(Stateless):
    """Multiply the loss of each term by a factor that moves linearly from one number to another.

    In step t of T, counted from 0, it is first + (last − first)·t/T; a term that is not named has 1. Circuit
    breakers (2406.04313) have such factors.

    - `factors`: the first and the last factor of each term, by the term's name: {forget: [1, 0]}. A term of
      `method.further` is named after its slot and its objective: `retain_kl`.
    """

    terms: tuple[str, ...] = ()

    def __init__(
        self, *, factors: Mapping[str, Annotated[list[float], Field(min_length=2, max_length=2)]]
    ) -> None:
        self.terms = tuple(factors)
        self._ends = factors
        self._step, self._steps = 0, 1

    def begin(self, steps: int) -> None:
        self._steps = steps

    def factors(self) -> Mapping[str, float]:
        made = self._step / self._steps
        return {name: first + (last - first) * made for name, (first, last) in self._ends.items()}

    def observe(self, losses: Mapping[str, float], epoch: float) -> None:
        self._step += 1

    def log(self) -> dict[str, float]:
        return {f"rule/{name}": factor for name, factor in self.factors().items()}

    def state(self) -> dict[str, Any]:
        return {"step": self._step}

    def load(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
