"""Gradients of terms over fixed samples of the data, partitioned as in the engine."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unlearn.config import MethodConfig
from unlearn.terms import Term, bind
from unlearn.training.step import Steps
from unlearn.training.step_data import Group, own_view

Partition = list[Tensor]
"""This process's partition of the gradient of each trained parameter."""
OLD, NEW = 0.6, 0.4
"""Weights of the running mean over mini-batches in the code released with arXiv 2502.19301."""


def risk_terms(sets: Sequence[str]) -> dict[str, Term]:
    """Return terms for the mean negative log-likelihood per answer token of each of these sets."""
    method = MethodConfig.model_validate({"name": "risk", **{name: {"objective": "nll"} for name in sets}})
    return {term.group: term for term in bind(method)}


class Samples(NamedTuple):
    """The first row of each sampled example by group, in data order."""

    objective: dict[str, list[int]]
    risk: dict[str, list[int]]


def sampled(groups: Mapping[str, Group], count: int | None, seed: int) -> Samples:
    """Draw two disjoint samples of `count` examples of each group, the same for all methods.

    Gradients over one sample share its noise, so that their inner product has the squared length of the noise
    in it; over disjoint samples it has not. A group of fewer than twice as many examples is both samples as a
    whole, and so is each with `count` None: e is then that of the sets, as arXiv 2502.19301 defines it.
    """
    samples = Samples({}, {})
    for name, group in groups.items():
        size, key = len(group.ids) // group.multiple, zlib.crc32(f"geffect/{name}".encode())
        objective = risk = np.arange(size)
        if count is not None and 2 * count <= size:
            drawn = np.random.default_rng([seed, key]).choice(size, 2 * count, replace=False)
            objective, risk = np.sort(drawn[:count]), np.sort(drawn[count:])
        samples.objective[name] = (objective * group.multiple).tolist()
        samples.risk[name] = (risk * group.multiple).tolist()
    return samples


@dataclass(frozen=True)
class Gradients:
    """Gradients over rows of the groups: of the whole sample, or a running mean over batches of it.

    Calls do not train, and leave the engine as it is between two steps.
    """

    steps: Steps
    rows: Mapping[str, Sequence[int]]
    batch: int | None = None
    """Rows of a group in a mini-batch of the running mean; None: the exact mean over all rows."""

    def of(self, term: Term, step: int) -> tuple[list[Tensor], float]:
        """Return a term's gradient over the sample, without its weight, and its value. A collective."""
        rows = self.rows[own_view(term).group]
        if self.batch is None:
            return self.over(term, rows, step)
        mean: list[Tensor] = []
        values = []
        for start in range(0, len(rows), self.batch):
            gradient, value = self.over(term, rows[start : start + self.batch], step)
            values.append(value)
            if not mean:
                mean = gradient
                continue
            for old, new in zip(mean, gradient, strict=True):
                old.mul_(OLD).add_(new, alpha=NEW)
        return mean, float(np.mean(values))

    def over(
        self, term: Term, rows: Sequence[int], step: int, means: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Tensor], float]:
        """Return the gradient and value over these rows of the term's group, each as on its first visit.

        `means`: averages over more than these rows that the term needs.
        """
        steps, engine = replace(self.steps, terms=[term]), self.steps.engine
        plan = steps.plan(step, {own_view(term).group: [(row, 0) for row in rows]})
        means = steps.means(plan, [term]) if means is None else means
        (loss,) = engine.world.sum(steps.backward(plan, {term.name: 1.0}, means)).tolist()
        return engine.take_gradients(), loss

    def means(self, term: Term, step: int) -> dict[str, Tensor]:
        """Return the averages over the whole sample that the term needs."""
        group = own_view(term).group
        steps = replace(self.steps, terms=[term])
        return steps.means(steps.plan(step, {group: [(row, 0) for row in self.rows[group]]}), [term])
