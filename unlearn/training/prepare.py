"""Prepare training data from examples: tokens, alternative answers, outputs of frozen models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn import interventions
from unlearn.config import RunConfig
from unlearn.data import refused_prompts
from unlearn.data.alternatives import alternatives, refusals
from unlearn.data.annotations import load_annotations
from unlearn.data.example import Example
from unlearn.data.templates import filled
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.passes.head import Head
from unlearn.statistics import STATISTICS
from unlearn.terms import Term, needs_direction, row_multiples
from unlearn.training import frozen_outputs, sampled_alternatives
from unlearn.training.engine import precision
from unlearn.training.frozen_outputs import FrozenOutput
from unlearn.training.shared_cache import compute_once
from unlearn.training.step_data import (
    Frozen,
    Group,
    Part,
    frozen_output,
    frozen_outputs_for,
    kinds,
    own_view,
)


@dataclass(frozen=True)
class FrozenModel:
    """A model that is used only before training.

    `key` identifies its weights. `hold` yields the model, in any parallel form, and whether each of its calls
    is a collective; `whole_head` makes its output head whole, to be read.
    """

    key: str
    hold: Callable[[], AbstractContextManager[tuple[nn.Module, bool]]]
    whole_head: Callable[[nn.Module], AbstractContextManager[None]]


def resolve_refusals(terms: Sequence[Term], encoder: Encoder) -> list[Term]:
    """Return the terms with the tokens of their refusals.

    Raises:
        DataError: a refusal has no tokens, or one that is beyond the model's vocabulary.
    """
    return [
        term if term.refusal is None else replace(term, refusal_ids=tuple(encoder.alone(term.refusal)))
        for term in terms
    ]


@dataclass(frozen=True)
class Preparation:
    """Prepares a run's data before its first step."""

    config: RunConfig
    terms: Sequence[Term]
    sets: Mapping[str, list[Example]]
    encoder: Encoder
    world: World

    def groups(self, reference_model: FrozenModel) -> dict[str, Group]:
        """Return token sequences of all training sets, without outputs of frozen models."""
        wanted = kinds((term, term.needs) for term in self.terms)
        return {name: self._group(name, names, reference_model) for name, names in wanted.items()}

    def watched(self, groups: Mapping[str, Group], names: Iterable[str]) -> dict[str, Group]:
        """Return the groups with the answers of these sets added, also of sets without a term."""
        watched = dict(groups)
        for name in names:
            examples = self.sets.get(name)
            if examples and (name not in watched or watched[name].answers is None):
                group = watched.get(name, Group([e.id for e in examples]))
                watched[name] = group.with_part("answers", self._answers(name, examples, group.multiple))
        return watched

    def with_frozen_outputs(
        self, groups: Mapping[str, Group], models: Mapping[str, FrozenModel]
    ) -> tuple[dict[str, Group], Frozen]:
        """Return the groups with outputs of frozen models, and the heads and directions of these models."""
        ready = dict(groups)
        heads: dict[str, Head] = {}
        for term in self.terms:
            for view, wanted in frozen_outputs_for(term).items():
                for output in sorted(wanted, key=str):
                    part = ready[view.group].part(view.kind)
                    if output in part.frozen:
                        continue
                    values = self._frozen_output(part, output, models[output.model])
                    part = replace(part, frozen={**part.frozen, output: values})
                    ready[view.group] = ready[view.group].with_part(view.kind, part)
                    if output.what == "head" and output.model not in heads:
                        heads[output.model] = self._head(models[output.model])
        directions = {t.name: self._direction(t, ready, models) for t in self.terms if needs_direction(t)}
        return ready, Frozen(heads, directions=directions)

    # -- text ------------------------------------------------------------------------------------------

    def _group(self, name: str, wanted: Sequence[str], target: FrozenModel) -> Group:
        examples = self.sets.get(name)
        if not examples:
            raise UserError(
                f"method {self.config.method.name} trains on the {name} set, which dataset "
                f"{self.config.dataset.name} does not have: set dataset.{name}"
            )
        multiple = row_multiples(self.config.method, self.terms).get(name, 1)
        answers = self._answers(name, examples, multiple) if "answers" in wanted else None
        alternative = self._alternatives(examples, target, multiple) if "alternatives" in wanted else None
        return Group([e.id for e in examples for _ in range(multiple)], answers, alternative, multiple)

    def _answers(self, name: str, examples: Sequence[Example], repeats: int = 1) -> Part:
        annotated = any(
            statistic.quantity == "important" and own_view(term).group == name
            for term in self.terms
            for statistic in term.statistics
        )
        share = interventions.prompt_share(self.config.method.intervention)
        encoder = replace(self.encoder, prompt_share=share)
        important = None
        if annotated:
            assert self.config.dataset.annotations is not None
            spans = load_annotations(self.config.dataset.annotations, examples)
            pairs = [(e.question, e.answer) for e in examples]
            openings, continued = [e.opening for e in examples], [e.continues for e in examples]
            important = encoder.important(pairs, spans, openings, continued)
        return Part(encoder.answers(examples), repeats=repeats, important=important)

    def _alternatives(self, examples: Sequence[Example], target: FrozenModel, multiple: int) -> Part:
        cfg = self.config.method.alternatives
        if cfg.source == "sampled":
            if opened := [e.id for e in examples if e.opening]:
                raise UserError(
                    f"method.alternatives.source=sampled: the answer to {opened[0]} begins with a text of "
                    "the data, which sampled answers do not follow: train on whole answers "
                    "(dataset.options), or choose another source"
                )
            texts = self._sampled(examples, target)
        else:
            pool = self.sets.get("retain", [])
            texts = alternatives(cfg, examples, pool=pool, seed=self.config.seed)
        alternative = [(e, text) for e, own in zip(examples, texts, strict=True) for text in own]
        pairs = [(e.question, text) for e, text in alternative]
        openings = [e.opening for e, _ in alternative]
        return Part(self.encoder.pairs(pairs, openings), variants=cfg.count // multiple)

    def _sampled(self, examples: Sequence[Example], target: FrozenModel) -> list[list[str]]:
        cfg, hardware = self.config.method.alternatives, self.config.hardware
        template = cfg.prompt or "{question}"
        questions = [filled(template, question=e.question or "", answer=e.answer) for e in examples]
        options: dict[str, Any] = {
            "count": cfg.count, "temperature": cfg.temperature, "max_new_tokens": cfg.max_new_tokens,
            "seed": self.config.seed,
        }  # fmt: skip
        root = Path(self.config.root)
        file = sampled_alternatives.cache_file(
            root, target.key, hardware.dtype, self.encoder, questions, **options
        )
        parts = file.with_suffix(".parts")

        def make() -> list[list[str]]:
            with target.hold() as (model, collective_forward):
                texts = sampled_alternatives.sample_alternatives(
                    model, self.encoder, questions, **options, max_rows=hardware.generate_rows,
                    world=self.world.with_collective_forward(collective_forward), device=self.world.device,
                    parts=parts,
                )  # fmt: skip
            if self.world.main:
                sampled_alternatives.write(file, questions, texts)
                shutil.rmtree(parts, ignore_errors=True)
            self.world.barrier()
            return texts

        return compute_once(file, self.world, lambda: sampled_alternatives.read(file, questions), make)

    # -- frozen models ---------------------------------------------------------------------------------

    def _frozen_output(self, part: Part, output: FrozenOutput, frozen: FrozenModel) -> Sequence[torch.Tensor]:
        dtype = self.config.hardware.dtype
        file = frozen_outputs.cache_file(Path(self.config.root), frozen.key, dtype, part.sequences, output)
        parts = file.with_suffix(".parts")

        def make() -> Sequence[torch.Tensor]:
            with frozen.hold() as (model, collective_forward):
                values = frozen_outputs.compute(
                    model, part.sequences, self.world, max_tokens=self.config.hardware.eval_tokens,
                    collective_forward=collective_forward, output=output, pad_id=self.encoder.pad_id,
                    parts=parts,
                )  # fmt: skip
            if self.world.main:
                logp = output.what == "logp"
                frozen_outputs.write(file, values, torch.float32 if logp else precision(dtype))
                shutil.rmtree(parts, ignore_errors=True)
            self.world.barrier()
            return values

        return compute_once(
            file, self.world, lambda: frozen_outputs.read(file, part.sequences, output.mask), make
        )

    def _direction(
        self, term: Term, groups: Mapping[str, Group], models: Mapping[str, FrozenModel]
    ) -> torch.Tensor:
        """Return the direction from a term's prompts to those of its file `refused_prompts`, [D]."""
        output, view = frozen_output(term, STATISTICS["direction"]), own_view(term)
        # What follows a prompt does not change its states.
        pairs = [(prompt, refusals()[0]) for prompt in refused_prompts.read(term)]
        refused = self._frozen_output(Part(self.encoder.pairs(pairs)), output, models[output.model])
        own = groups[view.group].part(view.kind).frozen[output]
        return frozen_outputs.direction_of(refused, own).to(self.world.device)

    def _head(self, frozen: FrozenModel) -> Head:
        dtype = self.config.hardware.dtype
        file = frozen_outputs.head_file(Path(self.config.root), frozen.key, dtype)
        device, precise = self.world.device, precision(dtype)

        def make() -> Head:
            with frozen.hold() as (model, _), frozen.whole_head(model):
                head = frozen_outputs.head_of(model)
            if self.world.main:
                frozen_outputs.write_head(file, head)
            self.world.barrier()
            return head.to(device, precise)

        return compute_once(file, self.world, lambda: frozen_outputs.read_head(file, device, precise), make)
