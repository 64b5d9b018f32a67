"""One micro-batch: the sequences of its units in one pass of the model, and what each term needs of it.

A unit is what must go through the model together: one example, or a question with its answer and an
alternative answer. A term looks at them through a view: which answers, and which of their positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unlearn.config import Mask
from unlearn.data.batching import Batch, Positions, collate, positions
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import World
from unlearn.interventions import gates
from unlearn.passes.forward import Ask, Head, read
from unlearn.terms import Term
from unlearn.training.frozen_outputs import LOGP, Kept

_COPIES = {"ref_logp": ("reference", "logp"), "ref_logits": ("reference", "head"),
           "reinforced_logits": ("reinforced", "head")}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Token sequences of one kind of answer: `variants` of them for each row of the group, in a row, or each
    of them for `repeats` rows.

    `kept` holds what frozen models gave, one tensor per sequence; `important` one boolean per answer token.
    """

    sequences: Sequence[TokenSequence]
    variants: int = 1
    repeats: int = 1
    kept: Mapping[Kept, Sequence[Tensor]] = field(default_factory=dict)
    important: Sequence[np.ndarray] | None = None

    def place(self, unit: Unit) -> int:
        """Where in `sequences` the unit's answer is."""
        return unit.row // self.repeats * self.variants + unit.meeting % self.variants


@dataclass(frozen=True)
class Group:
    """The training data of one set: ids, the answers, and alternative answers to the same questions.

    An example is `multiple` rows, one after the other: one for each of its alternative answers.
    """

    ids: Sequence[str]
    answers: Part | None = None
    alternatives: Part | None = None
    multiple: int = 1

    def sequence(self, unit: Unit, kind: str) -> TokenSequence:
        part = self.part(kind)
        return part.sequences[part.place(unit)]

    def with_part(self, kind: str, part: Part) -> Group:
        return replace(self, answers=part) if kind == "answers" else replace(self, alternatives=part)

    def part(self, kind: str) -> Part:
        found = self.answers if kind == "answers" else self.alternatives
        assert found is not None
        return found


@dataclass(frozen=True)
class Unit:
    group: str
    row: int
    meeting: int
    """How often the row was met before: alternative answers are gone through in turn."""


@dataclass(frozen=True)
class View:
    """The positions of one kind of answer that a term looks at."""

    group: str
    kind: str
    mask: Mask = "answer"
    skip: int = 0

    @property
    def part(self) -> tuple[str, str]:
        return self.group, self.kind


@dataclass(frozen=True)
class Plan:
    """What a step works on, the same on every process."""

    step: int
    units: Sequence[Unit]
    widths: Mapping[tuple[str, str], int]
    counts: Mapping[tuple[View, str], int]


def own_view(term: Term) -> View:
    """Where a term looks. Template answers are alternative answers to the questions of the forget set."""
    if term.group == "template":
        return View("forget", "alternatives", term.mask, term.skip)
    return View(term.group, "answers", term.mask, term.skip)


def alternative_view(term: Term) -> View:
    """Where a term finds the alternative answers it compares with."""
    return View(term.group, "alternatives")


def views(term: Term, needs: Iterable[str]) -> list[View]:
    """All the views that some needs of a term take."""
    found = []
    alternative = [need for need in needs if need.startswith(("alt_", "ref_alt_"))]
    if set(needs) - set(alternative):
        found.append(own_view(term))
    return found + ([alternative_view(term)] if alternative else [])


def kinds(wanted: Iterable[tuple[Term, frozenset[str]]]) -> dict[str, list[str]]:
    """Which kinds of answers some needs of terms take of each group."""
    found: dict[str, list[str]] = {}
    for term, needs in wanted:
        for view in views(term, needs):
            if view.kind not in found.setdefault(view.group, []):
                found[view.group].append(view.kind)
    return found


def kept_for(term: Term) -> dict[View, set[Kept]]:
    """What of frozen models a term needs, by view."""
    found: dict[View, set[Kept]] = {}
    for need in term.needs:
        if need in _COPIES:
            found.setdefault(own_view(term), set()).add(Kept(*_COPIES[need], term.mask))
        elif need == "ref_hidden":
            found.setdefault(own_view(term), set()).add(hidden_of(term))
        elif need == "ref_alt_logp":
            found.setdefault(alternative_view(term), set()).add(LOGP)
    return found


def hidden_of(term: Term) -> Kept:
    return Kept("reference", f"layer-{term.layer}", term.mask)


class Model(Protocol):
    """What of the engine a micro-batch needs."""

    world: World

    @property
    def model(self) -> Any: ...

    @property
    def module(self) -> Any: ...

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Frozen:
    """What stands beside the trained model: heads of frozen models, by name, and the mean teacher."""

    heads: Mapping[str, Head] = field(default_factory=dict)
    teacher: Sequence[Tensor] | None = None


class Micro:
    """A pass over some units, for some terms with some of their needs; `named` is what came out.

    Answers and alternative answers go through the model in passes of their own: a refusal beside a long
    answer would be mostly padding.
    """

    def __init__(
        self, engine: Model, groups: Mapping[str, Group], frozen: Frozen, plan: Plan, units: Sequence[Unit],
        wanted: Sequence[tuple[Term, frozenset[str]]], *, seed: int, pad_id: int,
    ) -> None:  # fmt: skip
        self.engine, self.groups, self.frozen, self.plan, self.seed = engine, groups, frozen, plan, seed
        self.wanted = [(t, n) for t, n in wanted if any(u.group == own_view(t).group for u in units)]
        self.views = list(dict.fromkeys(view for term, needs in self.wanted for view in views(term, needs)))
        self.units = {view.part: [u for u in units if u.group == view.group] for view in self.views}
        self.pad_id = pad_id
        self.where: dict[View, Positions] = {}
        self.read: dict[View, dict[str, Tensor]] = {}
        taught = self._teacher_logits()
        for kind in dict.fromkeys(view.kind for view in self.views):
            self._pass([view for view in self.views if view.kind == kind])
        for view, logits in taught.items():
            self.read[view]["teacher_logits"] = logits
        self.named = {term.name: {n: self._give(term, n) for n in needs} for term, needs in self.wanted}

    def _pass(self, views: Sequence[View]) -> None:
        batch, where, first = self._lay_out(views)
        self.where |= where
        found = read(self.engine.model, batch, [self._ask(view) for view in views])
        gated = {own_view(term) for term, needs in self.wanted if "gate" in needs}
        for view, given in zip(views, found, strict=True):
            self.read[view] = given
            if view in gated:
                rows = slice(first[view.part], first[view.part] + len(self.units[view.part]))
                given["gate"] = gates(self.engine.module)[rows]

    def _lay_out(
        self, views: Sequence[View]
    ) -> tuple[Batch, dict[View, Positions], dict[tuple[str, str], int]]:
        """One batch of the parts of some views, where each view looks, and the first row of each part."""
        device = self.engine.world.device
        flat: list[TokenSequence] = []
        first: dict[tuple[str, str], int] = {}
        chosen = {
            part: [self.groups[part[0]].sequence(unit, part[1]) for unit in self.units[part]]
            for part in dict.fromkeys(view.part for view in views)
        }
        for part, sequences in chosen.items():
            first[part] = len(flat)
            flat += sequences
        padded = [self.plan.widths[view.part] for view in views if view.mask == "all"]
        whole = any(view.mask != "answer" for view in views)
        width = max([*padded, *(len(s.ids) for s in flat)]) if whole else None
        batch = collate(flat, self.pad_id, width=width, attention_mask=bool(padded)).to(device)
        width = batch.input_ids.shape[1]
        where = {
            view: positions(
                chosen[view.part], width, first_row=first[view.part], mask=view.mask, skip=view.skip,
                all_width=self.plan.widths[view.part],
            ).to(device)
            for view in views
        }  # fmt: skip
        return batch, where, first

    def _ask(self, view: View) -> Ask:
        own = {need for term, needs in self.wanted if own_view(term) == view for need in needs}
        other = {need for term, needs in self.wanted if alternative_view(term) == view for need in needs}
        layers = {int(t.layer or 0) for t, needs in self.wanted if own_view(t) == view and "hidden" in needs}
        states = {}
        for need in sorted(own & {"ref_logits", "reinforced_logits"}):
            kept = Kept(*_COPIES[need], view.mask)
            states[need.removesuffix("_logits")] = (self.frozen.heads[kept.model], self._kept(view, kept))
        where = self.where[view]
        logp = "logp" in own or "alt_logp" in other
        return Ask(where.index, where.labels, logp, "logits" in own, tuple(sorted(layers)), states)

    def _teacher_logits(self) -> dict[View, Tensor]:
        taught = {own_view(term) for term, needs in self.wanted if "teacher_logits" in needs}
        wanted = [view for view in self.views if view in taught]
        if not wanted:
            return {}
        assert self.frozen.teacher is not None
        batch, where, _ = self._lay_out(wanted)  # the rows that it is asked about alone
        asks = [Ask(where[view].index, where[view].labels, logits=True) for view in wanted]
        with torch.no_grad(), self.engine.with_weights(self.frozen.teacher):
            found = read(self.engine.model, batch, asks)
        return {view: each["logits"] for view, each in zip(wanted, found, strict=True)}

    def _give(self, term: Term, need: str) -> Tensor:
        view = alternative_view(term) if need.startswith(("alt_", "ref_alt_")) else own_view(term)
        name = need.replace("alt_", "")
        if name == "lengths":
            return self.where[view].lengths
        if name == "labels":
            return self.where[view].labels
        if name == "ref_logp":
            return self._kept(view, LOGP)
        if name == "ref_hidden":
            return self._kept(view, hidden_of(term))
        if name == "hidden":
            return self.read[view][f"hidden/{int(term.layer or 0)}"]
        if name == "noise":
            return self._tokens(view, [self._noise(unit, view) for unit in self.units[view.part]])
        if name == "important":
            part = self.groups[view.group].part(view.kind)
            assert part.important is not None
            return self._tokens(view, [part.important[part.place(u)] for u in self.units[view.part]])
        return self.read[view][name]

    def _kept(self, view: View, kept: Kept) -> Tensor:
        part = self.groups[view.group].part(view.kind)
        found = [part.kept[kept][part.place(unit)] for unit in self.units[view.part]]
        if view.mask == "all":
            found = [values[: self.plan.widths[view.part]] for values in found]
        else:
            found = [values[view.skip :] for values in found]
        return torch.cat(found).to(self.engine.world.device)

    def _tokens(self, view: View, values: Sequence[np.ndarray]) -> Tensor:
        flat = np.concatenate([each[view.skip :] for each in values])
        return torch.from_numpy(flat).to(self.engine.world.device)

    def _noise(self, unit: Unit, view: View) -> np.ndarray:
        key = zlib.crc32(f"{self.groups[unit.group].ids[unit.row]}/{view.kind}".encode())
        length = self.groups[unit.group].sequence(unit, view.kind).answer_length
        drawn: np.ndarray = np.random.default_rng([self.seed, key, self.plan.step]).random(length)
        return drawn.astype(np.float32)
