"""Compute the statistics of terms for one micro-batch, which is some of the units of a step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unlearn.data.batching import Batch, Positions, collate, positions
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import World
from unlearn.interventions import gates
from unlearn.passes.forward import ForwardRequest, read
from unlearn.statistics import Statistic, statistics_of
from unlearn.terms import Term
from unlearn.training.frozen_outputs import FrozenOutput
from unlearn.training.step_data import Plan, TrainingData, Unit, View, frozen_output, own_view, view_of, views

ViewStatistics = dict[View, list[tuple[Term, Statistic]]]
"""The statistics to compute, with their terms, by view."""


class TrainedModel(Protocol):
    """The part of `Engine` that a micro-batch needs."""

    world: World

    @property
    def model(self) -> Any: ...

    @property
    def module(self) -> Any: ...

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class MicroBatch:
    """Statistics by the names of term and statistic, and the positions of each view."""

    named: Mapping[str, dict[str, Tensor]]
    positions: Mapping[View, Positions]

    def size(self, term: Term) -> int:
        """Return how many values the term's objective must return: N, or B for an objective per example."""
        where = self.positions[own_view(term)]
        return len(where.lengths if term.per == "example" else where.index)


def compute_statistics(
    engine: TrainedModel, data: TrainingData, plan: Plan, units: Sequence[Unit],
    requests: Sequence[tuple[Term, frozenset[str]]],
) -> MicroBatch:  # fmt: skip
    """Run the model on units of a step, and return the statistics that each term needs.

    Answers and alternative answers have separate passes: in a batch with long answers a refusal would be
    mostly padding. The mean teacher has a pass before these, if a term needs it.

    Args:
        requests: terms, each with the names of the statistics it needs. Terms without any of these units are
            left out.

    Returns:
        For each term its statistics at the N positions of its view of B sequences, in the order of the
        units: `logp`, `ref_logp`, `noise` [N] fp32; `labels` [N], `refusal` [N, K] int64; `important` [N]
        bool; `logits`, `ref_logits`, `teacher_logits`, `reinforced_logits` [N, V] and `hidden`, `ref_hidden`
        [N, D] in compute precision; `direction` [D] fp32; `lengths` [B] int64; `gate` [B, K] fp32. `alt_…`
        and `ref_alt_…` are the same over the N answer tokens of B alternative answers. Those of the trained
        model are differentiable.
    """
    present = {unit.group for unit in units}
    requests = [(term, needs) for term, needs in requests if own_view(term).group in present]
    wanted: ViewStatistics = {view: [] for term, needs in requests for view in views(term, needs)}
    for term, needs in requests:
        for statistic in statistics_of(needs):
            wanted[view_of(term, statistic)].append((term, statistic))
    rows = _Rows(data, plan, units, engine.world.device)
    outputs: dict[View, dict[str, Tensor]] = {view: {} for view in wanted}
    of_teacher = [view for view, pairs in wanted.items() if any(s.source == "teacher" for _, s in pairs)]
    if of_teacher:
        _run_teacher(engine, rows, of_teacher, outputs)
    for kind in dict.fromkeys(view.kind for view in wanted):
        _run_model(engine, rows, {view: wanted[view] for view in wanted if view.kind == kind}, outputs)
    named: dict[str, dict[str, Tensor]] = {term.name: {} for term, _ in requests}
    for view, pairs in wanted.items():
        for term, statistic in pairs:
            named[term.name][statistic.name] = _value(rows, view, term, statistic, outputs[view])
    return MicroBatch(named, rows.positions)


def _run_teacher(
    engine: TrainedModel, rows: _Rows, views: Sequence[View], outputs: Mapping[View, dict[str, Tensor]]
) -> None:
    """Add the mean teacher's logits at these views to the outputs."""
    weights = rows.data.frozen.teacher
    assert weights is not None
    batch = rows.lay_out(views)
    where = [rows.positions[view] for view in views]
    with torch.no_grad(), engine.with_weights(weights):
        answers = read(engine.model, batch, [ForwardRequest(w.index, w.labels, logits=True) for w in where])
    for view, answer in zip(views, answers, strict=True):
        outputs[view]["teacher_logits"] = answer["logits"]


def _run_model(
    engine: TrainedModel, rows: _Rows, wanted: ViewStatistics, outputs: Mapping[View, dict[str, Tensor]]
) -> None:
    """Add the trained model's outputs at these views, from one pass."""
    batch = rows.lay_out(list(wanted))
    answers = read(engine.model, batch, [_request(rows, view, pairs) for view, pairs in wanted.items()])
    for (view, pairs), answer in zip(wanted.items(), answers, strict=True):
        outputs[view].update(answer)
        if any(statistic.quantity == "gate" for _, statistic in pairs):
            outputs[view]["gate"] = gates(engine.module)[rows.rows_of[view.part]]


def _request(rows: _Rows, view: View, pairs: Sequence[tuple[Term, Statistic]]) -> ForwardRequest:
    of_model = {statistic.quantity for _, statistic in pairs if statistic.source == "model"}
    layers = {_layer(term) for term, each in pairs if each.source == "model" and each.needs_layer}
    states = {
        each.name: (rows.data.frozen.heads[each.source], rows.frozen(view, frozen_output(term, each)))
        for term, each in sorted(pairs, key=lambda pair: pair[1].name)
        if each.cached and each.quantity == "logits"
    }
    where = rows.positions[view]
    return ForwardRequest(
        where.index, where.labels, "logp" in of_model, "logits" in of_model, tuple(sorted(layers)), states
    )


def _value(
    rows: _Rows, view: View, term: Term, statistic: Statistic, outputs: Mapping[str, Tensor]
) -> Tensor:
    """Return one statistic of a term, from the data or from the models' outputs at its view."""
    if statistic.quantity == "direction":
        return rows.data.frozen.directions[term.name]
    if statistic.cached and statistic.quantity != "logits":
        return rows.frozen(view, frozen_output(term, statistic))
    match statistic.quantity:
        case "lengths":
            return rows.positions[view].lengths
        case "labels":
            return rows.positions[view].labels
        case "refusal":
            return rows.refusal(view, term.refusal_ids)
        case "noise":
            return rows.noise(view)
        case "important":
            return rows.important(view)
        case "hidden":
            return outputs[f"hidden/{_layer(term)}"]
        case "logp" | "gate":
            return outputs[statistic.quantity]
    return outputs[statistic.name]


def _layer(term: Term) -> int:
    return int(term.layer or 0)


@dataclass
class _Rows:
    """The units of a micro-batch in the data: their batch, and the data's values for each view."""

    data: TrainingData
    plan: Plan
    units: Sequence[Unit]
    device: torch.device
    positions: dict[View, Positions] = field(default_factory=dict)
    rows_of: dict[tuple[str, str], slice] = field(default_factory=dict)

    def units_of(self, group: str) -> list[Unit]:
        return [unit for unit in self.units if unit.group == group]

    def lay_out(self, views: Sequence[View]) -> Batch:
        """Return one batch of the parts of some views; store its rows and the positions of each view."""
        flat: list[TokenSequence] = []
        sequences: dict[tuple[str, str], list[TokenSequence]] = {}
        for group, kind in dict.fromkeys(view.part for view in views):
            own = [self.data.groups[group].sequence(unit, kind) for unit in self.units_of(group)]
            self.rows_of[group, kind] = slice(len(flat), len(flat) + len(own))
            sequences[group, kind] = own
            flat += own
        padded = [self.plan.widths[view.part] for view in views if view.mask == "all"]
        whole = any(view.mask in ("attention", "all") for view in views)
        width = max([*padded, *(len(s.ids) for s in flat)]) if whole else None
        batch = collate(flat, self.data.pad_id, width=width, attention_mask=bool(padded)).to(self.device)
        for view in views:
            self.positions[view] = positions(
                sequences[view.part], batch.input_ids.shape[1], first_row=self.rows_of[view.part].start,
                mask=view.mask, skip=view.skip, all_width=self.plan.widths[view.part],
            ).to(self.device)  # fmt: skip
        return batch

    def frozen(self, view: View, output: FrozenOutput) -> Tensor:
        """Return a frozen model's output at a view, [N] or [N, D]."""
        part = self.data.groups[view.group].part(view.kind)
        values = [part.frozen[output][part.index(unit)] for unit in self.units_of(view.group)]
        if view.mask == "all":
            values = [each[: self.plan.widths[view.part]] for each in values]
        else:
            values = [each[view.skip :] for each in values]
        return torch.cat(values).to(self.device)

    def important(self, view: View) -> Tensor:
        """Return whether each answer token lies in an annotated span, [N]."""
        part = self.data.groups[view.group].part(view.kind)
        assert part.important is not None
        return self._tokens(view, [part.important[part.index(unit)] for unit in self.units_of(view.group)])

    def refusal(self, view: View, ids: Sequence[int]) -> Tensor:
        """Return a refusal's K tokens at each position, from the one that is due there on, [N, K].

        They are due in turn, from the first position of the mask on, skipped ones included.
        """
        tokens = torch.tensor(ids, device=self.device)
        lengths = self.positions[view].lengths
        ends = lengths.cumsum(0)
        place = torch.arange(int(lengths.sum()), device=self.device) + view.skip
        place = place - torch.repeat_interleave(ends - lengths, lengths)
        return tokens[(place[:, None] + torch.arange(len(tokens), device=self.device)) % len(tokens)]

    def noise(self, view: View) -> Tensor:
        """Return one uniform random number per answer token, [N], determined by seed, example and step."""
        group, draws = self.data.groups[view.group], []
        for unit in self.units_of(view.group):
            key = zlib.crc32(f"{group.ids[unit.row]}/{view.kind}".encode())
            length = group.sequence(unit, view.kind).answer_length
            generator = np.random.default_rng([self.data.seed, key, self.plan.step])
            draws.append(generator.random(length).astype(np.float32))
        return self._tokens(view, draws)

    def _tokens(self, view: View, values: Sequence[np.ndarray]) -> Tensor:
        flat = np.concatenate([each[view.skip :] for each in values])
        return torch.from_numpy(flat).to(self.device)
