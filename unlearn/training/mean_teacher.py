"""The mean teacher: a running average of the trained model (arXiv 2504.13388)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unlearn.training.engine import Engine


class MeanTeacher:
    """θ_T ← rate·θ_T + (1 − rate)·θ after each step, in fp32, starting from the model's own weights.

    Each process holds one copy of its share of the trained parameters (at ZeRO 3 of its partition). A forward
    of the teacher uses the model with these weights in place of its own.
    """

    def __init__(self, engine: Engine, rate: float) -> None:
        self.engine, self.rate = engine, rate
        self.weights = [each.float() for each in engine.live_weights()]

    @torch.no_grad()
    def follow(self) -> None:
        """Update the average; call after each optimizer step."""
        for own, live in zip(self.weights, self.engine.live(), strict=True):
            own.lerp_(live.detach().float(), 1 - self.rate)

    def extend_state(
        self, state: Iterator[tuple[str, dict[str, Tensor]]]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the engine's state with the teacher's whole tensor of each parameter added."""
        whole = self.engine.whole(self.weights)
        for (name, tensors), (_, teacher) in zip(state, whole, strict=True):
            yield name, {**tensors, "teacher": teacher} if tensors else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `extend_state`, keyed `teacher/<name>`."""
        whole = {n.removeprefix("teacher/"): t for n, t in tensors.items() if n.startswith("teacher/")}
        for own, share in zip(self.weights, self.engine.shares(whole), strict=True):
            own.copy_(share)
