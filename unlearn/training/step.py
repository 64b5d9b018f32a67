"""One step: which units make it, how they are dealt, the values of its terms and their gradients.

Everything is averaged over the whole step, whatever the split into micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.config import HardwareConfig
from unlearn.data.batching import count, deal
from unlearn.rules import Rule
from unlearn.statistics import statistics_of
from unlearn.terms import Term
from unlearn.training.engine import Engine
from unlearn.training.microbatch import MicroBatch, compute_statistics
from unlearn.training.step_data import Plan, TrainingData, Unit, View, kinds, own_view, views


@dataclass
class Steps:
    """Puts the units of a step through the model and gives the values of terms."""

    engine: Engine
    terms: Sequence[Term]
    data: TrainingData
    hardware: HardwareConfig

    def plan(self, step: int, rows: Mapping[str, Sequence[tuple[int, int]]]) -> Plan:
        """Return the step's units from its (row, visit) of each group, and what its averages divide by."""
        units = [Unit(group, *each) for group, some in rows.items() for each in some]
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

    def deal(self, plan: Plan, terms: Sequence[Term], *, for_means: bool = False) -> list[list[Unit]]:
        """Return this process's micro-batches; some may be empty, where there are more processes than units.

        With `for_means` for the pass that computes `means`.
        """
        of_group = kinds((t, t.step_statistic_needs if for_means else t.loss_needs) for t in terms)
        units = [unit for unit in plan.units if unit.group in of_group]
        padded = {own_view(term).part for term in terms if term.mask == "all"}
        per_forward, world = self.hardware.micro_batch, self.engine.world
        dealt = deal(
            [sum(self._width(plan, u, kind, padded) for kind in of_group[u.group]) for u in units],
            world.size,
            max_tokens=None if per_forward else self.hardware.micro_tokens,
            max_rows=per_forward * len(of_group) if per_forward else None,
        )
        # In the order of the plan, rows of one group stay together.
        return [[units[i] for i in sorted(micro)] for micro in dealt[world.rank]]

    def values(
        self, plan: Plan, units: Sequence[Unit], terms: Sequence[Term], means: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return these units' share of each term's mean over the step; terms without a unit are left out."""
        here = {unit.group for unit in units}
        company = [u for u in self.dummy(plan, terms) if u.group not in here] if self._uneven(terms) else []
        micro = self.statistics(plan, [*units, *company], [(term, term.loss_needs) for term in terms])
        shares = {}
        for term in (term for term in terms if term.name in micro.named):
            given = micro.named[term.name]
            if term.name in means:
                given["batch_mean"] = means[term.name]
            values = term.values(given)
            view, expected = own_view(term), micro.size(term)
            if values.shape != (expected,):
                raise RuntimeError(
                    f"the objective of {term.name} returned shape {tuple(values.shape)}, not [{expected}]"
                )
            shares[term.name] = values.sum() / plan.counts[view, term.per]
            if view.group not in here:
                shares[term.name] = shares[term.name] * 0.0
        return shares

    def means(self, plan: Plan, terms: Sequence[Term]) -> dict[str, Tensor]:
        """Return what terms need averaged over the whole step before they can be trained on, [K] each.

        Costs a pass without gradients over the data of those terms, and only of what that mean needs. A
        collective.
        """
        terms = [term for term in terms if term.needs_step_statistic]
        if not terms:
            return {}
        requests = [(term, term.step_statistic_needs) for term in terms]
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for units in self.deal(plan, terms, for_means=True):
                micro = self.statistics(plan, units or self.dummy(plan, terms), requests)
                for term in (term for term in terms if units and term.name in micro.named):
                    here = term.step_statistic_values(micro.named[term.name]).double().sum(0)
                    sums[term.name] = sums[term.name] + here if term.name in sums else here
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
        """Add the gradient of the weighted sum of these terms to the engine's.

        Returns this process's share of each term's loss without its weight, float64 [T]. A collective.
        """
        terms = [term for term in self.terms if term.name in weights]
        losses = torch.zeros(len(terms), dtype=torch.float64, device=self.engine.world.device)
        for units in self.deal(plan, terms):
            # Without units, this process still takes part in the collectives.
            shares = self.values(plan, units or self.dummy(plan, terms), terms, means)
            loss = sum(weights[term.name] * shares[term.name] for term in terms if term.name in shares)
            assert isinstance(loss, Tensor)
            self.engine.backward(loss if units else loss * 0.0)
            for place, term in enumerate(terms):
                if units and term.name in shares:
                    losses[place] += shares[term.name].detach()
        return losses

    def loss(self, plan: Plan, weights: Mapping[str, float], means: Mapping[str, Tensor]) -> float:
        """Return the weighted sum of these terms over the whole step, without gradients. A collective."""
        terms = [term for term in self.terms if term.name in weights]
        total = torch.zeros((), dtype=torch.float64, device=self.engine.world.device)
        with torch.no_grad():
            for units in self.deal(plan, terms):
                shares = self.values(plan, units or self.dummy(plan, terms), terms, means)
                if units:
                    total += sum(
                        weights[term.name] * shares[term.name].double()
                        for term in terms
                        if term.name in shares
                    )
        return float(self.engine.world.sum(total))

    def losses_along(
        self, plan: Plan, weights: Mapping[str, float], before: Sequence[Tensor], after: Sequence[Tensor],
        multipliers: Sequence[float],
    ) -> list[float]:  # fmt: skip
        """Return the weighted sum of these terms at multiples of an update; the model is left as it is.

        `before` and `after` are the engine's live weights around the update; −1 is after it. A collective.
        """
        means = self.means(plan, [term for term in self.terms if term.name in weights])
        losses = []
        for multiplier in multipliers:
            both = zip(before, after, strict=True)
            with self.engine.with_weights([torch.lerp(old, new, -multiplier) for old, new in both]):
                losses.append(self.loss(plan, weights, means))
        return losses

    def statistics(
        self, plan: Plan, units: Sequence[Unit], requests: Sequence[tuple[Term, frozenset[str]]]
    ) -> MicroBatch:
        """Return what the model and the data give of these units for terms."""
        return compute_statistics(self.engine, self.data, plan, units, requests)

    def dummy(self, plan: Plan, terms: Sequence[Term]) -> list[Unit]:
        """Return one unit of each group, for a process that has none and must take part in collectives."""
        first: dict[str, Unit] = {}
        for unit in plan.units:
            first.setdefault(unit.group, unit)
        return [first[group] for group in kinds((term, term.needs) for term in terms)]

    def tokens(self, plan: Plan) -> int:
        """Return how many tokens go through the model in a step."""
        of_group = kinds((term, term.needs) for term in self.terms)
        return sum(
            len(self.data.groups[u.group].sequence(u, kind).ids) - 1
            for u in plan.units
            for kind in of_group.get(u.group, ())
        )

    def _uneven(self, terms: Sequence[Term]) -> bool:
        """Return whether a micro-batch without a group calls for fewer collectives than one with it.

        Gathering and reducing follow the passes: how often the model is called, and from which layer the
        gradient starts. They must be alike on all processes, whichever groups each has in a micro-batch.
        """
        passes: dict[str, set[Any]] = {}
        for term in terms:
            some = statistics_of(term.loss_needs)
            own = passes.setdefault(own_view(term).group, set())
            own.update(view.kind for view in views(term, term.loss_needs))
            own.update(each.source for each in some if each.source == "teacher")
            own.add("head" if any(each.needs_head for each in some) else term.layer)
        return self.engine.world.size > 1 and len({frozenset(each) for each in passes.values()}) > 1

    def _width(self, plan: Plan, unit: Unit, kind: str, padded: set[tuple[str, str]]) -> int:
        if (unit.group, kind) in padded:
            return plan.widths[unit.group, kind]
        return len(self.data.groups[unit.group].sequence(unit, kind).ids) - 1


def combine_gradients(
    engine: Engine, rule: Rule, gradients: Sequence[list[Tensor]], weights: Sequence[float]
) -> list[float]:
    """Make the rule's combination of the terms' weighted gradients the step's; return their norms.

    `gradients` are the engine's shares; the first is overwritten. A collective.
    """
    gram = engine.gram(gradients)
    factors = rule.combine(gram).tolist()
    combined = gradients[0]
    for place, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        for into, each in zip(combined, gradient, strict=True):
            if place == 0:
                into.mul_(weights[0] * factor)
            else:
                into.add_(each, alpha=weights[place] * factor)
    engine.put_gradients(combined)
    norms: list[float] = gram.diagonal().clamp(min=0).sqrt().tolist()
    return norms
