"""Gradient rules."""

from collections.abc import Mapping
from typing import Any

from unlearn.rules import Stateless


class Cautious(Stateless):
    """Multiply the retain loss by up to `most` while it is above its value in the first step."""

    terms = ("forget", "retain")

    def __init__(self, *, most: float = 4.0) -> None:
        self.most = most
        self.first: float | None = None
        self.factor = 1.0

    def factors(self) -> Mapping[str, float]:
        return {"retain": self.factor}

    def observe(self, losses: Mapping[str, float], epoch: float) -> None:
        self.first = losses["retain"] if self.first is None else self.first
        self.factor = min(self.most, max(1.0, losses["retain"] / max(self.first, 1e-6)))

    def log(self) -> dict[str, float]:
        return {"rule/retain": self.factor}

    def state(self) -> dict[str, Any]:
        return {"first": self.first, "factor": self.factor}

    def load(self, state: Mapping[str, Any]) -> None:
        self.first, self.factor = state["first"], state["factor"]
