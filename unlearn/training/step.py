"""One step: which units make it, how they are dealt, and the values of its terms.

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
from unlearn.terms import Term
from unlearn.training.engine import Engine
from unlearn.training.microbatch import Frozen, Group, Micro, Plan, Unit, View, kinds, own_view, views

_HEADED = {"logp", "alt_logp", "logits"}


@dataclass
class Steps:
    """Puts the units of a step through the model and gives the values of terms."""

    engine: Engine
    terms: Sequence[Term]
    groups: Mapping[str, Group]
    hardware: HardwareConfig
    frozen: Frozen
    seed: int
    pad_id: int = 0

    def plan(self, step: int, rows: Mapping[str, Sequence[tuple[int, int]]]) -> Plan:
        """The step's units from its (row, meeting) of each group, and what its averages divide by."""
        units = [Unit(group, *each) for group, some in rows.items() for each in some]
        every = {view for term in self.terms for view in views(term, term.needs)}
        chosen = {
            view.part: [self.groups[u.group].sequence(u, view.kind) for u in units if u.group == view.group]
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

    def deal(self, plan: Plan, terms: Sequence[Term], *, back: bool = False) -> list[list[Unit]]:
        """This process's micro-batches; some may be empty, where there are more processes than units.

        With `back` for the pass that finds `means`.
        """
        of_group = kinds((t, t.before_needs if back else t.step_needs) for t in terms)
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
        """These units' share of each term's mean over the step; terms without a unit here are left out."""
        here = {unit.group for unit in units}
        company = [u for u in self.dummy(plan, terms) if u.group not in here] if self._uneven(terms) else []
        micro = self._micro(plan, [*units, *company], [(term, term.step_needs) for term in terms])
        shares = {}
        for term in (term for term in terms if term.name in micro.named):
            given = micro.named[term.name]
            if term.name in means:
                given["batch_mean"] = means[term.name]
            values = term.values(given)
            view = own_view(term)
            expected = len(micro.units[view.part]) if term.per == "example" else len(micro.where[view].index)
            if values.shape != (expected,):
                raise RuntimeError(
                    f"the objective of {term.name} returned shape {tuple(values.shape)}, not [{expected}]"
                )
            shares[term.name] = values.sum() / plan.counts[view, term.per]
            if view.group not in here:
                shares[term.name] = shares[term.name] * 0.0
        return shares

    def means(self, plan: Plan, terms: Sequence[Term]) -> dict[str, Tensor]:
        """What terms need averaged over the whole step before they can be trained on, [K] each.

        Costs a pass without gradients over the data of those terms, and only of what that mean needs.
        """
        back = [term for term in terms if term.looks_back]
        if not back:
            return {}
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for units in self.deal(plan, back, back=True):
                micro = self._micro(
                    plan, units or self.dummy(plan, back), [(term, term.before_needs) for term in back]
                )
                for term in (term for term in back if units and term.name in micro.named):
                    here = term.before_values(micro.named[term.name]).double().sum(0)
                    sums[term.name] = sums[term.name] + here if term.name in sums else here
        world = self.engine.world
        parts = world.gather([{name: each.cpu() for name, each in sums.items()}])
        return {
            term.name: torch.stack([part[term.name] for part in parts if term.name in part])
            .sum(0)
            .to(world.device, torch.float32)
            / plan.counts[own_view(term), "example"]
            for term in back
        }

    def named(self, plan: Plan, units: Sequence[Unit], term: Term) -> dict[str, Tensor]:
        """What the model gives of these units for a term, by the names that objectives ask with."""
        return self._micro(plan, units, [(term, term.step_needs)]).named[term.name]

    def dummy(self, plan: Plan, terms: Sequence[Term]) -> list[Unit]:
        """One unit of each group, for a process that has none and must take part in the collectives."""
        first: dict[str, Unit] = {}
        for unit in plan.units:
            first.setdefault(unit.group, unit)
        return [first[group] for group in kinds((term, term.needs) for term in terms)]

    def tokens(self, plan: Plan) -> int:
        """Tokens that go through the model in a step."""
        of_group = kinds((term, term.needs) for term in self.terms)
        return sum(
            len(self.groups[u.group].sequence(u, kind).ids) - 1
            for u in plan.units
            for kind in of_group.get(u.group, ())
        )

    def _uneven(self, terms: Sequence[Term]) -> bool:
        """Whether a micro-batch without a group calls for fewer collectives than one with it.

        Gathering and reducing follow the passes: how often the model is called, and from which layer the
        gradient starts. They must be alike on all processes, whichever groups each has in a micro-batch.
        """
        passes: dict[str, set[Any]] = {}
        for term in terms:
            passes.setdefault(own_view(term).group, set()).update(
                v.kind for v in views(term, term.step_needs)
            )
            headed = term.step_needs & _HEADED
            ways = {"teacher"} & {need.removesuffix("_logits") for need in term.step_needs}
            passes[own_view(term).group].update(ways, {"head"} if headed else {term.layer})
        return self.engine.world.size > 1 and len({frozenset(each) for each in passes.values()}) > 1

    def _micro(
        self, plan: Plan, units: Sequence[Unit], wanted: Sequence[tuple[Term, frozenset[str]]]
    ) -> Micro:
        return Micro(
            self.engine, self.groups, self.frozen, plan, units, wanted, seed=self.seed, pad_id=self.pad_id
        )

    def _width(self, plan: Plan, unit: Unit, kind: str, padded: set[tuple[str, str]]) -> int:
        if (unit.group, kind) in padded:
            return plan.widths[unit.group, kind]
        return len(self.groups[unit.group].sequence(unit, kind).ids) - 1
