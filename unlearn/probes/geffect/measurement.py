"""The G-effect (arXiv 2502.19301, definition 1): e = ⟨∇R(D), ∇L⟩ of a risk R on a set D and an objective L.

A plain step of descent of size η on L changes R by about −η·e; one of AdamW, or clipped, is another step.
Unlearning needs e < 0 on the forget set and e ≥ 0 on the retain set. Measured by parameter tensor, group of
layers, kind of module, term, example and token.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unlearn.passes.module_modes import kept_modes
from unlearn.probes._base import WATCHED, WatchedRun
from unlearn.probes.geffect import GeffectOptions
from unlearn.probes.geffect.example_effects import ExampleEffects, Points, implicit_weights
from unlearn.probes.geffect.linearity_check import Change, changes
from unlearn.probes.geffect.parameter_groups import parameter_groups
from unlearn.probes.geffect.set_gradients import Gradients, Partition, risk_terms, sampled
from unlearn.probes.geffect.tables import WAYS, Example, Measured, Pair, Tensors, numbers, write
from unlearn.probes.geffect.weight_distance import Start
from unlearn.terms import Term
from unlearn.training.combination import combine
from unlearn.training.engine import NonFiniteGradient
from unlearn.training.observers import ProbeContext
from unlearn.training.step import Steps
from unlearn.training.step_data import TrainingData, own_view

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Objective:
    """The gradient of a training step, and the factor of each term's gradient in it."""

    gradient: Partition
    factors: Mapping[str, float]


class Measurement:
    """Measures a model under an engine; its tables go to `folder`."""

    def __init__(self, options: GeffectOptions, run: WatchedRun, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.engine, self.terms, self.groups = run.engine, run.terms, run.groups
        self.encoder, self.hardware, self.seed = run.encoder, run.config.hardware, run.config.seed
        self.batch = run.config.method.batch
        self.texts = {n: {e.id: (e.question, e.answer) for e in run.sets[n]} for n in run.groups}
        self.parameter_groups = parameter_groups(self.engine.module, options.boundaries)
        self.risks = risk_terms([name for name in WATCHED if self._answers(name)])
        self.samples = sampled(self.groups, options.examples, self.seed)
        self.start = Start(folder / "start.safetensors", self.engine)

    def measure(self, context: ProbeContext) -> dict[str, float]:
        """Measure, write the tables, and return numbers for the history. A collective.

        The model, its gradients, its modes and all random states are restored afterwards.
        """
        started = time.perf_counter()
        with _still(
            self.engine.module, bool(self.hardware.activation_checkpointing), self.engine.world.device
        ):
            try:
                measured = self._measured(context)
            except NonFiniteGradient as error:
                log.warning("the probe measures nothing at step %d: %s", context.step, error)
                return {}
        if self.engine.world.main:
            write(self.folder / f"step-{context.step:06}", measured, self.encoder.tokenizer)
        self.engine.world.barrier()
        return numbers(measured, self.options.trust) | {"geffect/seconds": time.perf_counter() - started}

    # -- gradients -------------------------------------------------------------------------------------

    def _measured(self, context: ProbeContext) -> Measured:
        gradients = self._gradients(context)
        of_risk = replace(gradients, rows=self.samples.risk)
        risks: dict[str, Partition] = {}
        levels: dict[str, float] = {}
        for name, term in self.risks.items():
            risks[name], levels[name] = of_risk.of(term, context.step)
        tensors: list[Tensors] = []

        def compare(gradient: Partition, name: str, factor: float) -> None:
            grams = self.engine.gram_by_parameter([gradient, *risks.values()])
            tensors.append(Tensors(name, factor, tuple(risks), grams))

        objective = self._objective(gradients, risks, context, compare)
        compare(objective.gradient, "objective", 1.0)
        examples = self._examples(gradients, objective, risks, context)
        return Measured(
            step=context.step,
            parameter_groups=self.parameter_groups,
            risks=levels,
            tensors=tensors,
            distance=self.start.distance(),
            examples=examples,
            change=self._change(objective, examples, context),
            pairs=self._pairs(gradients, objective, context),
        )

    def _gradients(self, context: ProbeContext) -> Gradients:
        data = TrainingData(self.groups, context.frozen, self.seed, self.encoder.pad_id)
        steps = Steps(self.engine, self.terms, data, self.hardware)
        batch = self.batch if self.options.mode == "running" else None
        return Gradients(steps, self.samples.objective, batch)

    def _objective(
        self,
        gradients: Gradients,
        risks: Mapping[str, Partition],
        context: ProbeContext,
        compare: Any,
    ) -> _Objective:
        """Compute the terms' gradients one at a time, and combine them as the gradient rule does."""
        rule = copy.deepcopy(context.rule)
        weights = {term.name: term.weight * rule.factors().get(term.name, 1.0) for term in self.terms}
        by_term: dict[str, Partition] = {}
        total: Partition = []
        for term in self.terms:
            group = own_view(term).group
            plain = self._is_risk(term, group)
            gradient = risks[group] if plain else gradients.of(term, context.step)[0]
            if rule.separate:
                by_term[term.name] = gradient
                continue
            compare(gradient, term.name, weights[term.name])
            _add(total, gradient, weights[term.name])
        if rule.separate:
            sets = [own_view(term).group for term in self.terms]
            found = combine(
                self.engine, rule, list(by_term.values()), list(weights.values()), sets, context.kept
            )
            *factors, of_kept = found.update
            for name, factor in zip(by_term, factors, strict=True):
                weights[name] = factor
                compare(by_term[name], name, factor)
                _add(total, by_term[name], factor)
            if context.kept is not None:
                _add(total, context.kept, of_kept)
        return _Objective(total, weights)

    # -- single examples -------------------------------------------------------------------------------

    @cached_property
    def _points(self) -> dict[str, Points]:
        count, rows = self.options.points, self.samples.risk
        return {n: Points.of(n, self.groups[n], rows[n][:count]) for n in self.risks} if count else {}

    @cached_property
    def _effects(self) -> ExampleEffects:
        return ExampleEffects(self.engine, self.parameter_groups, self.hardware.tokens)

    def _examples(
        self,
        gradients: Gradients,
        objective: _Objective,
        risks: Mapping[str, Partition],
        context: ProbeContext,
    ) -> list[Example]:
        directions = {"objective": objective.gradient}
        directions |= {WAYS[name]: share for name, share in risks.items()}
        examples = []
        for name, points in self._points.items():
            effects = self._effects.by_example(points, list(directions.values()))
            levels = self._effects.risks(points)
            weights = self._weights(gradients, points, context)
            tokens = self._tokens(points, directions)
            for i, key in enumerate(points.ids):
                question, answer = self.texts[name][key]
                by_group = {
                    way: {group: float(values[k]) for group, values in effects[i].items()}
                    for k, way in enumerate(directions)
                }
                examples.append(
                    Example(
                        set=name,
                        id=key,
                        question=question,
                        answer=answer,
                        risk=float(levels[i]),
                        effects=by_group,
                        sequence=points.sequences[i],
                        weights=None if weights is None else weights[i],
                        tokens=tokens[i],
                    )
                )
        return examples

    def _tokens(self, points: Points, directions: Mapping[str, Partition]) -> list[dict[str, Any]]:
        """Return for each example the columns of its token table: log p and effects."""
        tables: list[dict[str, Any]] = [{} for _ in points.ids]
        if not self.options.tokens:
            return tables
        for way, share in directions.items():
            whole = self._effects.whole(share)
            restrictions: dict[str, list[str] | None] = {way: None}
            if self.options.token_layers:
                groups = dict.fromkeys(self.parameter_groups[name].group for name in whole)
                restrictions |= {f"{way}/{group}": [group] for group in groups}
            for column, selected in restrictions.items():
                effects = self._effects.by_token(points, whole, selected)
                for columns, (logp, effect) in zip(tables, effects, strict=True):
                    columns.update({"logp": logp, column: effect})
        return tables

    def _weights(self, gradients: Gradients, points: Points, context: ProbeContext) -> Any:
        """Return the implicit weights of the first term that uses these answers' log-probabilities."""
        for term in self.terms if points.name == "forget" else ():
            means = gradients.means(term, context.step)
            weights = implicit_weights(gradients.steps, term, points, context.step, means)
            if weights is not None:
                return weights
        return None

    def _change(
        self, objective: _Objective, examples: Sequence[Example], context: ProbeContext
    ) -> dict[str, Change]:
        """Compare predicted and true changes, from the examples' risks and effects at these weights.

        Not in bf16, whose steps are larger than what weights move here.
        """
        if not self.options.check or self.hardware.dtype == "bf16":
            return {}
        known = {}
        for name in self._points:
            own = [example for example in examples if example.set == name]
            effects = np.array([sum(example.effects["objective"].values()) for example in own])
            known[name] = (effects, np.array([example.risk for example in own]))
        rate = context.rate * self.options.step
        return changes(
            self._effects, self._points, known, objective.gradient, rate, second=self.options.second_order
        )

    def _pairs(self, gradients: Gradients, objective: _Objective, context: ProbeContext) -> list[Pair]:
        """Measure the effect of forgetting one example alone on single retain examples."""
        size = min([self.options.grid, *(len(points.ids) for points in self._points.values())])
        own = [term for term in self.terms if own_view(term).group == "forget"]
        if not size or len(self._points) < 2 or not own:
            return []
        forget, retain = (self._points[name] for name in ("forget", "retain"))
        affected = Points("retain", retain.rows[:size], retain.ids[:size], retain.sequences[:size])
        means = {term.name: gradients.means(term, context.step) for term in own}
        pairs = []
        for row, key in zip(forget.rows[:size], forget.ids[:size], strict=True):
            alone: Partition = []
            for term in own:
                gradient, _ = gradients.over(term, [row], context.step, means[term.name])
                _add(alone, gradient, objective.factors[term.name])
            length = float(self.engine.gram([alone])[0, 0].sqrt())
            effects = self._effects.by_example(affected, [alone])
            for other, values in zip(affected.ids, effects, strict=True):
                effect = float(sum(each[0] for each in values.values()))
                pairs.append(Pair(key, other, effect, effect / length if length else 0.0))
        return pairs

    def _is_risk(self, term: Term, group: str) -> bool:
        """Whether a term's gradient over its sample is the gradient of the risk."""
        same = self.samples.objective[group] == self.samples.risk[group]
        return same and group in self.risks and _alike(term, self.risks[group])

    def _answers(self, name: str) -> bool:
        return name in self.groups and self.groups[name].answers is not None


def _alike(term: Term, risk: Term) -> bool:
    """Whether a term equals the risk, of the same answers and not of others to the same questions."""
    same = (term.objective, term.mask, term.skip, term.weighting) == (risk.objective, "answer", 0, None)
    return same and own_view(term) == own_view(risk)


def _add(total: Partition, gradient: Partition, factor: float) -> None:
    if not total:
        total += [factor * each for each in gradient]
        return
    for into, each in zip(total, gradient, strict=True):
        into.add_(each, alpha=factor)


@contextmanager
def _still(model: nn.Module, checkpointing: bool, device: torch.device) -> Iterator[None]:
    """Turn dropout off; restore every module's mode and all random states afterwards."""
    with kept_modes(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for module in model.modules():
            # Blocks recompute activations in training mode only; the modules inside them can be in eval mode.
            module.training = checkpointing and bool(getattr(module, "gradient_checkpointing", False))
        yield
