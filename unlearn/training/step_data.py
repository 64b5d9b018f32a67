"""The data of a step: groups of token sequences, the units of a step, and the views of terms.

A unit must be in one micro-batch: one example, or a question with its answer and an alternative answer. A
view is the answers of a unit that a term uses, and which of their positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from unlearn.config import Mask
from unlearn.data.tokenization import TokenSequence
from unlearn.passes.head import Head
from unlearn.statistics import Statistic, statistics_of
from unlearn.terms import Term
from unlearn.training.frozen_outputs import FrozenOutput


@dataclass(frozen=True)
class Part:
    """Token sequences of one kind of answer.

    Each row of the group has `variants` consecutive sequences, or each sequence serves `repeats` rows.
    `frozen` holds outputs of frozen models, one tensor per sequence; `important` one boolean per answer
    token.
    """

    sequences: Sequence[TokenSequence]
    variants: int = 1
    repeats: int = 1
    frozen: Mapping[FrozenOutput, Sequence[Tensor]] = field(default_factory=dict)
    important: Sequence[np.ndarray] | None = None

    def index(self, unit: Unit) -> int:
        """Return the index of the unit's answer in `sequences`."""
        return unit.row // self.repeats * self.variants + unit.visit % self.variants


@dataclass(frozen=True)
class Group:
    """The training data of one set: ids, the answers, and alternative answers to the same questions.

    An example has `multiple` consecutive rows, one for each of its alternative answers.
    """

    ids: Sequence[str]
    answers: Part | None = None
    alternatives: Part | None = None
    multiple: int = 1

    def sequence(self, unit: Unit, kind: str) -> TokenSequence:
        part = self.part(kind)
        return part.sequences[part.index(unit)]

    def with_part(self, kind: str, part: Part) -> Group:
        return replace(self, answers=part) if kind == "answers" else replace(self, alternatives=part)

    def part(self, kind: str) -> Part:
        part = self.answers if kind == "answers" else self.alternatives
        assert part is not None
        return part


@dataclass(frozen=True)
class Unit:
    """A row of a group; `visit` counts its earlier uses, which cycle through its alternative answers."""

    group: str
    row: int
    visit: int


@dataclass(frozen=True)
class View:
    """The positions of one kind of answer that a term uses."""

    group: str
    kind: str
    mask: Mask = "answer"
    skip: int = 0

    @property
    def part(self) -> tuple[str, str]:
        return self.group, self.kind


@dataclass(frozen=True)
class Plan:
    """The units of a step, the same on every process.

    `widths` are the lengths of the longest sequence of each part. `counts` are the numbers of tokens and of
    examples of each view, by which means over the step divide.
    """

    step: int
    units: Sequence[Unit]
    widths: Mapping[tuple[str, str], int]
    counts: Mapping[tuple[View, str], int]


@dataclass(frozen=True)
class Frozen:
    """What is of other models than the trained one: heads of frozen models by name, the weights of the mean
    teacher, and the statistic `direction` of each term that needs it, [D] by the term's name."""

    heads: Mapping[str, Head] = field(default_factory=dict)
    teacher: Sequence[Tensor] | None = None
    directions: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingData:
    """The data from which, with the trained model, the statistics of a step are computed."""

    groups: Mapping[str, Group]
    frozen: Frozen = field(default_factory=Frozen)
    seed: int = 0
    pad_id: int = 0


def own_view(term: Term) -> View:
    """Return the view of a term.

    Template answers are alternative answers to the questions of the forget set.
    """
    if term.group == "template":
        return View("forget", "alternatives", term.mask, term.skip)
    return View(term.group, "answers", term.mask, term.skip)


def alternative_view(term: Term) -> View:
    """Return the view of the alternative answers that a term compares with."""
    return View(term.group, "alternatives")


def view_of(term: Term, statistic: Statistic) -> View:
    """Return the view at which a statistic of a term is measured."""
    return alternative_view(term) if statistic.alternative else own_view(term)


def views(term: Term, needs: Iterable[str]) -> list[View]:
    """Return the views of a term's needs, its own view first."""
    alternative = {statistic.alternative for statistic in statistics_of(needs)}
    chosen = [own_view(term)] if False in alternative else []
    return chosen + ([alternative_view(term)] if True in alternative else [])


def kinds(wanted: Iterable[tuple[Term, Iterable[str]]]) -> dict[str, list[str]]:
    """Return by group the kinds of answers that some needs of terms use."""
    chosen: dict[str, list[str]] = {}
    for term, needs in wanted:
        for view in views(term, needs):
            if view.kind not in chosen.setdefault(view.group, []):
                chosen[view.group].append(view.kind)
    return chosen


def frozen_output(term: Term, statistic: Statistic) -> FrozenOutput:
    """Return the output of a frozen model from which a statistic of a term is computed."""
    mask = "prompt" if statistic.quantity == "direction" else view_of(term, statistic).mask
    if statistic.quantity == "logits":
        return FrozenOutput(statistic.source, "head", mask)
    what = f"layer-{term.layer}" if statistic.needs_layer else "logp"
    return FrozenOutput(statistic.source, what, mask)


def frozen_outputs_for(term: Term) -> dict[View, set[FrozenOutput]]:
    """Return the outputs of frozen models that a term needs, by view."""
    chosen: dict[View, set[FrozenOutput]] = {}
    for statistic in term.statistics:
        if statistic.cached:
            chosen.setdefault(view_of(term, statistic), set()).add(frozen_output(term, statistic))
    return chosen
