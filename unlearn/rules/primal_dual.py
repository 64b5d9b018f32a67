"""Forgetting under a constraint on the retain loss, with a dual weight (arXiv 2506.05314, PDU)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import NonNegativeFloat

from unlearn.rules import Stateless


class PrimalDual(Stateless):
    """Minimise the forget term subject to L_retain ≤ ε: the Lagrangian γ·F + λ·(L_retain − ε).

    λ is the factor of the retain term. It is updated by gradient ascent, λ ← max(0, λ + rate·(L_retain − ε)).
    Source: OpenUnlearning src/trainer/unlearn/pdu.py, which updates λ in every micro-batch of every process,
    and by epoch measures the retain loss again.

    - `epsilon`: the bound ε on the retain loss; give more than the loss at the start.
    - `rate`: how far λ moves for each unit by which the retain loss differs from ε.
    - `initial`: λ at the start.
    - `warmup_epochs`: for so many epochs λ stays as it is.
    - `every`: when λ is updated: after a step, or at the end of an epoch with its mean loss, first at the end
      of the warm-up.
    """

    terms = ("forget", "retain")

    def __init__(
        self, *, epsilon: float, rate: NonNegativeFloat = 5.0, initial: NonNegativeFloat = 100.0,
        warmup_epochs: NonNegativeFloat = 5.0, every: Literal["step", "epoch"] = "step",
    ) -> None:  # fmt: skip
        self.epsilon, self.rate, self.warmup_epochs, self.every = epsilon, rate, warmup_epochs, every
        self.dual = initial
        self._sum, self._steps, self._epoch = 0.0, 0, 0

    def factors(self) -> Mapping[str, float]:
        return {"retain": self.dual}

    def observe(self, losses: Mapping[str, float], epoch: float) -> None:
        self._sum += losses["retain"]
        self._steps += 1
        whole, by_epoch = int(epoch + 1e-9), self.every == "epoch"
        if by_epoch and whole == self._epoch:
            return
        # The last step of the warm-up is part of it. By epoch, the one that ends with the warm-up counts.
        past = epoch - self.warmup_epochs
        if past > -1e-9 if by_epoch else past > 1e-9:
            self.dual = max(0.0, self.dual + self.rate * (self._sum / self._steps - self.epsilon))
        self._sum, self._steps, self._epoch = 0.0, 0, whole

    def log(self) -> dict[str, float]:
        return {"rule/dual": self.dual}

    def state(self) -> dict[str, Any]:
        return {"dual": self.dual, "sum": self._sum, "steps": self._steps, "epoch": self._epoch}

    def load(self, state: Mapping[str, Any]) -> None:
        self.dual, self._sum = state["dual"], state["sum"]
        self._steps, self._epoch = state["steps"], state["epoch"]
