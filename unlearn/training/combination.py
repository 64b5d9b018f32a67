"""Combine the gradients of terms as a rule says, and keep the gradient that a rule keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.rules import Remembering, Rule
from unlearn.training.engine import Engine, NonFiniteGradient


@dataclass(frozen=True)
class Combination:
    """What a rule makes of T gradients and the one that it keeps, which is the last.

    `norms` [T] are those of the gradients without their weights. `update` and `kept` [T + 1] are the factors
    in the update and in the gradient that is kept next; `kept` is empty if the rule keeps none.
    """

    norms: list[float]
    update: list[float]
    kept: list[float]


class KeptVector:
    """A number for each trained parameter that a training keeps, in fp32: this process's share.

    `shares` have the shapes of taken gradients, the whole at ZeRO 0 and this process's partition from ZeRO 1
    on; None until there is something to keep. In checkpoints they are whole tensors `<key>/<name>`.
    """

    def __init__(self, engine: Engine, key: str) -> None:
        self.engine, self.key = engine, key
        self.shares: list[Tensor] | None = None

    def extend_state(
        self, state: Iterator[tuple[str, dict[str, Tensor]]]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the engine's state with the whole tensor of each parameter added. A collective."""
        if self.shares is None:
            yield from state
            return
        whole = self.engine.whole_gradients([self.shares])
        for (name, tensors), (_, (kept,)) in zip(state, whole, strict=True):
            yield name, {**tensors, self.key: kept.to("cpu", copy=True)} if tensors else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `extend_state`, on any number of processes and at any ZeRO stage."""
        if any(name.startswith(f"{self.key}/") for name in tensors):
            self.shares = self.engine.distribute(
                lambda own: tensors[f"{self.key}/{own.name}"].flatten()[own.at : own.at + own.length]
            )


def combine(
    engine: Engine, rule: Rule, gradients: Sequence[list[Tensor]], weights: Sequence[float],
    sets: Sequence[str], kept: list[Tensor] | None,
) -> Combination:  # fmt: skip
    """Ask a rule for its factors of taken gradients and of the kept one, None for zero. A collective.

    `weights` and `sets` are those of the terms.

    Raises:
        NonFiniteGradient: an inner product is not finite, on all processes.
    """
    gram = engine.gram(gradients if kept is None else [*gradients, kept])
    if not bool(gram.isfinite().all()):
        raise NonFiniteGradient("the inner products of the terms' gradients are not finite; lower method.lr")
    norms: list[float] = gram.diagonal()[: len(weights)].clamp(min=0).sqrt().tolist()
    if not isinstance(rule, Remembering):
        return Combination(norms, [*(rule.combine(gram) * gram.new_tensor(weights)).tolist(), 0.0], [])
    factors = gram.new_tensor([*weights, 1.0])
    whole = gram.new_zeros((len(factors),) * 2)
    whole[: len(gram), : len(gram)] = gram
    update, following = rule.project(whole * factors * factors[:, None], sets)
    return Combination(
        norms, (update * factors).tolist(), (following * factors).tolist() if rule.keeps else []
    )


def combine_gradients(
    engine: Engine, rule: Rule, gradients: Sequence[list[Tensor]], weights: Sequence[float],
    sets: Sequence[str], kept: KeptVector,
) -> list[float]:  # fmt: skip
    """Set the step's gradient to the rule's combination of the terms' weighted gradients; return their norms.

    `gradients` are the engine's shares; the first is overwritten. A collective.

    Raises:
        NonFiniteGradient: a gradient or their combination is not; what the rule keeps is as it was.
    """
    found = combine(engine, rule, gradients, weights, sets, kept.shares)
    former = [*gradients, kept.shares or []]
    if any(found.kept[:1]):
        former[0] = [each.clone() for each in gradients[0]]
    combined = gradients[0]
    for into in combined:
        into.mul_(found.update[0])
    _add(combined, former[1:], found.update[1:])
    engine.put_gradients(combined)
    if found.kept:
        if kept.shares is None:
            kept.shares = [torch.zeros_like(each) for each in combined]
        for into in kept.shares:
            into.mul_(found.kept[-1])
        _add(kept.shares, former[:-1], found.kept[:-1])
    return found.norms


def _add(total: Sequence[Tensor], vectors: Sequence[Sequence[Tensor]], factors: Sequence[float]) -> None:
    for vector, factor in zip(vectors, factors, strict=True):
        if factor and vector:
            for into, each in zip(total, vector, strict=True):
                into.add_(each, alpha=factor)
