"""One step: its units, their split into micro-batches, the values of its terms and their gradients.

All averages are over the whole step and do not depend on the split into micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from unlearn.config import HardwareConfig
from unlearn.data.batching import count
from unlearn.errors import UserError
from unlearn.passes.out_of_memory import Key, in_portions
from unlearn.statistics import statistics_of
from unlearn.terms import Term
from unlearn.training.engine import Engine
from unlearn.training.microbatch import MicroBatch, compute_statistics
from unlearn.training.step_data import Plan, TrainingData, Unit, View, kinds, own_view, views

T = TypeVar("T")
Requests: TypeAlias = Sequence[tuple[Term, frozenset[str]]]
"""Terms with the names of what they need of a micro-batch."""


@dataclass
class Steps:
    """Runs the model on the units of a step and computes the values of terms and their gradients."""

    engine: Engine
    terms: Sequence[Term]
    data: TrainingData
    hardware: HardwareConfig

    def plan(self, step: int, rows: Mapping[str, Sequence[tuple[int, int]]]) -> Plan:
        """Return the plan of a step from the (row, visit) pairs of each group."""
        units = [Unit(group, *pair) for group, pairs in rows.items() for pair in pairs]
        every = {view for term in self.terms for view in views(term, term.needs)}
        chosen = {
            view.part: [
                self.data.groups[u.group].sequence(u, view.kind) for u in units if u.group == view.group
            ]
            for view in every
        }
        widths = {part: max(len(s.ids) for s in sequences) for part, sequences in chosen.items()}
        counts: dict[tuple[View, str], int] = {}
        for view in every:
            tokens = (
                count(s, mask=view.mask, skip=view.skip, all_width=widths[view.part])
                for s in chosen[view.part]
            )
            counts[view, "token"] = max(1, sum(tokens))
            counts[view, "example"] = len(chosen[view.part])
        return Plan(step, units, widths, counts)

    def in_micro_batches(
        self, plan: Plan, terms: Sequence[Term], compute: Callable[[list[list[Unit]]], T], *,
        for_means: bool = False, adding: bool = False,
    ) -> T:  # fmt: skip
        """Return `compute` of this process's micro-batches; some are empty if there are more processes than
        units. Out of memory, it is called again with smaller ones. A collective.

        `for_means`: for the pass that computes `means`. `adding`: it adds to the engine's gradient, which had
        nothing before.
        """
        of_group = kinds((t, t.step_statistic_needs if for_means else t.loss_needs) for t in terms)
        units = [unit for unit in plan.units if unit.group in of_group]
        padded = {own_view(term).part for term in terms if term.mask == "all"}
        hardware, world = self.hardware, self.engine.world
        key: Key = "micro_batch" if hardware.micro_batch else "micro_tokens"
        return in_portions(
            world,
            key,
            hardware.micro_batch or hardware.tokens,
            [sum(self._width(plan, u, kind, padded) for kind in of_group[u.group]) for u in units],
            # Sorted as in the plan, so that rows of one group are adjacent.
            lambda bins: compute([[units[i] for i in sorted(micro)] for micro in bins[world.rank]]),
            factor=len(of_group) if hardware.micro_batch else 1,
            collective=self.engine.zero == 3 or (adding and self.engine.zero == 2 and world.size > 1),
            discard=self.engine.discard if adding else lambda: None,
        )

    def values(
        self, plan: Plan, units: Sequence[Unit], terms: Sequence[Term], means: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return these units' share of each term's mean over the step; terms without a unit are left out."""
        present = {unit.group for unit in units}
        requests = [(term, term.loss_needs) for term in terms]
        micro = self.statistics(plan, self._filled(plan, units, requests), requests)
        shares = {}
        for term in (term for term in terms if term.name in micro.named):
            statistics = micro.named[term.name]
            if term.name in means:
                statistics["batch_mean"] = means[term.name]
            values = term.values(statistics)
            view, expected = own_view(term), micro.size(term)
            if values.shape != (expected,):
                raise RuntimeError(
                    f"the objective of {term.name} returned shape {tuple(values.shape)}, not [{expected}]"
                )
            learned_from = torch.is_grad_enabled() and any(each.requires_grad for each in statistics.values())
            if learned_from and not values.requires_grad:
                raise UserError(
                    f"the objective of {term.name} returns values without a gradient (of `detach`, `no_grad` "
                    "or a comparison), so that nothing would be learned from it"
                )
            shares[term.name] = values.sum() / plan.counts[view, term.per]
            if view.group not in present:
                shares[term.name] = shares[term.name] * 0.0
        return shares

    def means(self, plan: Plan, terms: Sequence[Term]) -> dict[str, Tensor]:
        """Return the means over the whole step that terms need before their losses, [K] each. A collective.

        Costs a pass without gradients over the data of these terms, with only the statistics of the means.
        """
        terms = [term for term in terms if term.needs_step_statistic]
        if not terms:
            return {}
        requests = [(term, term.step_statistic_needs) for term in terms]

        @torch.no_grad()
        def summed(micro_batches: list[list[Unit]]) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            for units in micro_batches:
                present = {unit.group for unit in units}
                own = self._filled(plan, units or self.dummy(plan, terms), requests)
                micro = self.statistics(plan, own, requests)
                for term in (term for term in terms if own_view(term).group in present):
                    total = term.step_statistic_values(micro.named[term.name]).double().sum(0)
                    sums[term.name] = sums[term.name] + total if term.name in sums else total
            return sums

        sums = self.in_micro_batches(plan, terms, summed, for_means=True)
        world = self.engine.world
        parts = world.gather([{name: each.cpu() for name, each in sums.items()}])
        return {
            term.name: torch.stack([part[term.name] for part in parts if term.name in part])
            .sum(0)
            .to(world.device, torch.float32)
            / plan.counts[own_view(term), "example"]
            for term in terms
        }

    def backward(self, plan: Plan, weights: Mapping[str, float], means: Mapping[str, Tensor]) -> Tensor:
        """Put the gradient of the weighted sum of these terms into the engine, which must have none.

        Returns this process's share of each term's loss without its weight, float64 [T]. A collective.
        """
        terms = [term for term in self.terms if term.name in weights]

        def summed(micro_batches: list[list[Unit]]) -> Tensor:
            losses = torch.zeros(len(terms), dtype=torch.float64, device=self.engine.world.device)
            for units in micro_batches:
                # Without units, this process still takes part in the collectives.
                shares = self.values(plan, units or self.dummy(plan, terms), terms, means)
                loss = sum(weights[term.name] * shares[term.name] for term in terms if term.name in shares)
                assert isinstance(loss, Tensor)
                self.engine.backward(loss if units else loss * 0.0)
                for index, term in enumerate(terms):
                    if units and term.name in shares:
                        losses[index] += shares[term.name].detach()
            return losses

        return self.in_micro_batches(plan, terms, summed, adding=True)

    def loss(self, plan: Plan, weights: Mapping[str, float], means: Mapping[str, Tensor]) -> float:
        """Return the weighted sum of these terms over the whole step, without gradients. A collective."""
        terms = [term for term in self.terms if term.name in weights]

        @torch.no_grad()
        def summed(micro_batches: list[list[Unit]]) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=self.engine.world.device)
            for units in micro_batches:
                shares = self.values(plan, units or self.dummy(plan, terms), terms, means)
                if units:
                    total += sum(
                        weights[term.name] * shares[term.name].double()
                        for term in terms
                        if term.name in shares
                    )
            return total

        return float(self.engine.world.sum(self.in_micro_batches(plan, terms, summed)))

    def losses_along(
        self, plan: Plan, weights: Mapping[str, float], before: Sequence[Tensor], after: Sequence[Tensor],
        multipliers: Sequence[float],
    ) -> list[float]:  # fmt: skip
        """Return the weighted sum of these terms at multiples of an update; the model does not change.

        `before` and `after` are the engine's master weights around the update, since bf16 rounds much of it
        away; multiplier −1 is after it. A collective.
        """
        terms = [term for term in self.terms if term.name in weights]
        losses = []
        for multiplier in multipliers:
            both = zip(before, after, strict=True)
            moved = self.engine.as_live([torch.lerp(old, new, -multiplier) for old, new in both])
            with self.engine.with_weights(moved):
                losses.append(self.loss(plan, weights, self.means(plan, terms)))
            del moved  # before the next
        return losses

    def statistics(self, plan: Plan, units: Sequence[Unit], requests: Requests) -> MicroBatch:
        """Return the statistics of these units that the terms need."""
        return compute_statistics(self.engine, self.data, plan, units, requests)

    def dummy(self, plan: Plan, terms: Sequence[Term]) -> list[Unit]:
        """Return one unit of each group, for a process without units that must take part in collectives."""
        first: dict[str, Unit] = {}
        for unit in plan.units:
            first.setdefault(unit.group, unit)
        return [first[group] for group in kinds((term, term.needs) for term in terms)]

    def tokens(self, plan: Plan) -> int:
        """Return the number of tokens that a step runs the model on."""
        of_group = kinds((term, term.needs) for term in self.terms)
        return sum(
            len(self.data.groups[u.group].sequence(u, kind).ids) - 1
            for u in plan.units
            for kind in of_group.get(u.group, ())
        )

    def _filled(self, plan: Plan, units: Sequence[Unit], requests: Requests) -> list[Unit]:
        """Return the units; with one of each group that they lack, where collectives depend on the groups."""
        if not self._uneven(requests):
            return list(units)
        present = {unit.group for unit in units}
        return [*units, *(u for u in self.dummy(plan, [t for t, _ in requests]) if u.group not in present)]

    def _uneven(self, requests: Requests) -> bool:
        """Return whether a micro-batch without some group makes fewer collectives than one with it.

        The collectives of ZeRO depend on how often the model is called, and on the layer where the gradient
        starts. Both must be the same on all processes, whichever groups their micro-batches have.
        """
        passes: dict[str, set[Any]] = {}
        for term, needs in requests:
            needed = statistics_of(needs)
            own = passes.setdefault(own_view(term).group, set())
            own.update(view.kind for view in views(term, needs))
            own.update(each.source for each in needed if each.source == "teacher")
            own.add("head" if any(each.needs_head for each in needed) else term.layer)
        return self.engine.world.size > 1 and len({frozenset(each) for each in passes.values()}) > 1

    def _width(self, plan: Plan, unit: Unit, kind: str, padded: set[tuple[str, str]]) -> int:
        if (unit.group, kind) in padded:
            return plan.widths[unit.group, kind]
        return len(self.data.groups[unit.group].sequence(unit, kind).ids) - 1
