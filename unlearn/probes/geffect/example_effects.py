"""Effects of a direction in parameter space on the likelihood of single examples and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from unlearn.data.batching import Batch, collate
from unlearn.data.tokenization import TokenSequence
from unlearn.passes.forward import forward
from unlearn.passes.module_modes import kept_modes
from unlearn.passes.out_of_memory import Bins, in_portions
from unlearn.passes.per_example.forward_mode import token_effects
from unlearn.passes.per_example.inner_products import inner_products
from unlearn.probes.geffect.parameter_groups import ParameterGroup
from unlearn.probes.geffect.set_gradients import Partition
from unlearn.terms import Term
from unlearn.training.engine import Engine
from unlearn.training.step import Steps
from unlearn.training.step_data import Group, Unit, own_view

T = TypeVar("T")


@dataclass(frozen=True)
class Points:
    """Examples of one set for single-example effects: their rows in the group, and their answers."""

    name: str
    rows: Sequence[int]
    ids: Sequence[str]
    sequences: Sequence[TokenSequence]

    @classmethod
    def of(cls, name: str, group: Group, rows: Sequence[int]) -> Points:
        sequences = [group.sequence(Unit(name, row, 0), "answers") for row in rows]
        return cls(name, rows, [group.ids[row] for row in rows], sequences)


@dataclass(frozen=True)
class ExampleEffects:
    """Computes effects on single examples with an engine's model; every method is a collective."""

    engine: Engine
    parameter_groups: Mapping[str, ParameterGroup]
    max_tokens: int

    def by_example(self, points: Points, directions: Sequence[Partition]) -> list[dict[str, np.ndarray]]:
        """Return for each example ⟨∇ of its mean NLL, direction⟩ [K] in each group of layers."""

        def compute(batch: Batch) -> list[dict[str, np.ndarray]]:
            whole = self.engine.whole_gradients(directions)
            sums: dict[str, Tensor] = {}
            # Blocks in training mode would compute their states again, and otherwise than they were recorded.
            with kept_modes(self.engine.module):
                self.engine.module.eval()
                for name, values in inner_products(self.engine.module, batch, whole).items():
                    group = self.parameter_groups[name].group
                    sums[group] = sums[group] + values if group in sums else values
            arrays = {group: values.cpu().numpy() for group, values in sums.items()}
            return [
                {group: values[:, place] for group, values in arrays.items()}
                for place in range(len(batch.lengths))
            ]

        return self._each(points, compute)

    def by_token(
        self, points: Points, direction: Mapping[str, Tensor], groups: Sequence[str] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each example log p and ⟨∇ of NLL, direction⟩ of each answer token [N].

        With `groups`, the direction is restricted to the parameters of these groups of layers.
        """

        def along(name: str) -> Tensor | None:
            if groups is not None and self.parameter_groups[name].group not in groups:
                return None
            value = direction.get(name)
            return None if value is None else value.to(self.engine.world.device)

        def compute(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
            effects = token_effects(self.engine.module, batch, along)
            sizes = batch.lengths.tolist()
            pairs = zip(effects.logp.split(sizes), effects.effect.split(sizes), strict=True)
            return [(logp.cpu().numpy(), effect.cpu().numpy()) for logp, effect in pairs]

        return self._each(points, compute)

    def risks(self, points: Points) -> np.ndarray:
        """Return the mean NLL of each example's answer tokens, [E], float64."""

        @torch.no_grad()
        def compute(batch: Batch) -> list[float]:
            parts = forward(self.engine.module, batch).logp.double().split(batch.lengths.tolist())
            return [-float(part.mean()) for part in parts]

        return np.array(self._each(points, compute))

    def whole(self, direction: Partition) -> dict[str, Tensor]:
        """Return a direction by parameter; under ZeRO 3 on the CPU, as no device holds a whole model."""
        offload = self.engine.zero == 3
        return {n: t.cpu() if offload else t for n, (t,) in self.engine.whole_gradients([direction])}

    def _each(self, points: Points, compute: Callable[[Batch], Sequence[T]]) -> list[T]:
        """Return `compute` of each example on all processes; all processes call it equally often."""
        world = self.engine.world
        lengths = [len(s.ids) - 1 for s in points.sequences]

        def computed(bins: Bins) -> list[tuple[int, T]]:
            mine: list[tuple[int, T]] = []
            for part in bins[world.rank]:
                batch = collate([points.sequences[i] for i in part or [0]]).to(world.device)
                mine += list(zip(part, compute(batch), strict=False))
            return mine

        # Directions are made whole by collectives, where they are partitioned.
        collective = self.engine.zero == 3 or (self.engine.zero > 0 and world.size > 1)
        mine = in_portions(
            world, "micro_tokens", self.max_tokens, lengths, computed, collective=collective
        )  # fmt: skip
        results = dict(world.gather(mine))
        return [results[i] for i in range(len(points.sequences))]


@torch.no_grad()
def implicit_weights(steps: Steps, term: Term, points: Points, step: int, means: Mapping[str, Tensor]) -> Any:
    """Return a term's weight of each answer token: the derivative of its un-averaged values by log p.

    1 for gradient ascent, p^β for WGA, 2π^β/(π^β+π°^β) for NPO (arXiv 2502.19301, eq. 2 and 4). One array
    per example; None for a term that does not use the log-probabilities of these answers. A collective.
    """
    view = own_view(term)
    if view.group != points.name or view.kind != "answers" or "logp" not in term.loss_needs or view.skip:
        return None
    alone = replace(steps, terms=[term])
    plan = alone.plan(step, {view.group: [(row, 0) for row in points.rows]})

    def computed(micro_batches: list[list[Unit]]) -> list[tuple[int, np.ndarray]]:
        mine: list[tuple[int, np.ndarray]] = []
        for units in micro_batches:
            micro = alone.statistics(plan, units or alone.dummy(plan, [term]), [(term, term.loss_needs)])
            inputs = micro.named[term.name]
            if term.name in means:
                inputs["batch_mean"] = means[term.name]
            logp = inputs["logp"].detach().float().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(term.values({**inputs, "logp": logp}).sum(), logp)
            sizes = [_length(steps, unit) for unit in units]
            mine += list(zip([unit.row for unit in units], _cut(slope.cpu().numpy(), sizes), strict=False))
        return mine

    mine = alone.in_micro_batches(plan, [term], computed)
    weights = dict(steps.engine.world.gather(mine))
    return [weights[row] for row in points.rows]


def _length(steps: Steps, unit: Unit) -> int:
    return steps.data.groups[unit.group].sequence(unit, "answers").answer_length


def _cut(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
