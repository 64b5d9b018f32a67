"""The smoothed gradient of the forget terms in a step, and the mean of late weights: `method.smooth`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unlearn import smoothing
from unlearn.config import SmoothConfig
from unlearn.smoothing import Vector
from unlearn.terms import Term
from unlearn.training.combination import KeptVector
from unlearn.training.engine import Engine
from unlearn.training.step import Steps
from unlearn.training.step_data import Plan, own_view
from unlearn.training.zero_partitions import ParameterSlice

Check = Callable[[float, Plan], None]
"""Called with the loss of each pass over the whole step; raises an error if it is not finite."""

# Numbers that one seed makes: a process makes only those around its own part.
_DRAWN = 1 << 20


@dataclass
class ForgetLoss:
    """The forget terms of one step, around the current weights (`unlearn.smoothing.Loss`).

    Weights are shifted in fp32, from the masters, and then rounded to compute precision; their former values
    return bit for bit. A master exactly between two bf16 numbers, with 16-bit remainders, may be rounded to
    the other one even by a shift of 0.

    `passes` are the backward passes: terms with their factors. `factors` are those of the passes in F.
    `losses` holds this process's share of each term's loss, for each call of `gradients`. `changed` holds for
    each shift the share of the trained weights that it changed in compute precision.
    """

    steps: Steps
    plan: Plan
    passes: Sequence[Mapping[str, float]]
    factors: Sequence[float]
    check: Check
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)

    def gradients(self, shift: Vector | None) -> list[Vector]:
        values = None if shift is None else self._shifted(shift)
        losses: dict[str, Tensor] = {}
        taken = []
        for weights in self.passes:
            with nullcontext() if values is None else self.steps.engine.with_weights(values):
                losses |= gradient_of(self.steps, self.plan, weights, self.check)
            taken.append(self.steps.engine.take_gradients())
        self.losses.append(losses)
        return taken

    def total(self, gradients: Sequence[Vector]) -> Vector:
        total = [self.factors[0] * each for each in gradients[0]]
        for factor, gradient in zip(self.factors[1:], gradients[1:], strict=True):
            for into, each in zip(total, gradient, strict=True):
                into.add_(each, alpha=factor)
        return total

    def norm(self, vector: Vector) -> float:
        return math.sqrt(float(self.steps.engine.gram([vector])[0, 0]))

    def noise(self, draw: int, sigma: float, seed: int) -> Vector:
        """Return N(0, σ²) for each weight, determined by seed, step, draw and parameter alone.

        On a GPU the numbers are other ones than on a CPU.
        """
        return self.steps.engine.distribute(
            lambda own: sigma * noise(own, (seed, self.plan.step, draw), self.steps.engine.world.device)
        )

    def _shifted(self, shift: Vector) -> list[Tensor]:
        """Return the live weights at the shift, in compute precision. A collective."""
        engine = self.steps.engine
        moved = [master + each for master, each in zip(engine.masters(), shift, strict=True)]
        values, changed, count = [], 0, 0
        for value, live in zip(engine.as_live(moved), engine.live(), strict=True):
            values.append(value.to(live.device, live.dtype))
            changed += int((values[-1] != live).sum())
            count += live.numel()
        both = torch.tensor([changed, count], dtype=torch.float64, device=engine.world.device)
        changed, count = (engine.world.sum(both) if engine.zero == 3 else both).tolist()
        self.changed.append(changed / count)
        return values


class Smoothness:
    """Makes the gradients of steps with that of the forget terms smoothed, as `method.smooth` says."""

    def __init__(self, steps: Steps, config: SmoothConfig, separate: bool, check: Check) -> None:
        self.steps, self.config, self.separate, self.check = steps, config, separate, check
        self._changed = float("nan")

    def losses_and_gradients(
        self, plan: Plan, weights: Mapping[str, float]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return this process's share of each term's loss [T], and of the gradients. A collective.

        A gradient for each term, without its weight, if they are `separate`; else that of the weighted sum of
        the terms alone. Those of the other terms are at the weights themselves. So are the losses, but for
        `random`: there a forget term's is the mean over the draws.
        """
        terms = self.steps.terms
        forget = [term for term in terms if own_view(term).group == "forget"]
        others = [term for term in terms if own_view(term).group != "forget"]
        passes = self._passes(forget, weights)
        factors = [weights[term.name] for term in forget] if self.separate else [1.0]
        loss = ForgetLoss(self.steps, plan, passes, factors, self.check)
        gradients = self._smoothed(loss)
        self._changed = sum(loss.changed) / len(loss.changed) if loss.changed else 0.0
        calls = loss.losses if self.config.name == "random" else loss.losses[:1]
        losses = {t.name: torch.stack([call[t.name] for call in calls]).mean(0) for t in forget}
        for each in self._passes(others, weights):
            losses |= gradient_of(self.steps, plan, each, self.check)
            gradients.append(self.steps.engine.take_gradients())
        if self.separate:
            by_name = {t.name: g for t, g in zip([*forget, *others], gradients, strict=True)}
            gradients = [by_name[term.name] for term in terms]
        elif len(gradients) > 1:
            for into, gradient in zip(*gradients, strict=True):
                into.add_(gradient)
            del gradients[1]
        return torch.stack([losses[term.name] for term in terms]), gradients

    def log(self) -> dict[str, float]:
        """Return the share of the weights that the last step's shifts changed in compute precision."""
        return {"smooth/changed": self._changed}

    def _passes(self, terms: Sequence[Term], weights: Mapping[str, float]) -> list[dict[str, float]]:
        if self.separate:
            return [{term.name: 1.0} for term in terms]
        return [{term.name: weights[term.name] for term in terms}] if terms else []

    def _smoothed(self, loss: ForgetLoss) -> list[Vector]:
        config, seed = self.config, self.steps.data.seed
        match config.name:
            case "sam":
                return smoothing.sam(loss, config.rho)
            case "random":
                return smoothing.random(loss, lambda i: loss.noise(i, config.sigma, seed), config.draws)
            case "penalty":
                return smoothing.penalty(loss, config.weight, config.mu)
            case "curvature":
                return smoothing.curvature(loss, config.weight, config.mu)
        raise ValueError(f"method.smooth.name={config.name} smooths no gradient")


class WeightAverage:
    """The mean of the master weights after some of the last steps, which replaces the weights at the end.

    The first are those after `start` of the steps; each process keeps its share of the mean in fp32.
    """

    def __init__(self, engine: Engine, config: SmoothConfig, total: int) -> None:
        self.engine, self.every = engine, config.every
        self.first = max(1, math.ceil(config.start * total - 1e-9))
        self.mean = KeptVector(engine, "average")

    def count(self, step: int) -> int:
        """Return how many weights are in the mean after a step, which is counted from 1."""
        return max(0, (step - self.first) // self.every + 1)

    @torch.no_grad()
    def follow(self, step: int) -> dict[str, float]:
        """Add the weights after a step to the mean if they are due; return the row for the history."""
        count = self.count(step)
        if count > self.count(step - 1):
            masters = self.engine.masters()
            if self.mean.shares is None:
                self.mean.shares = [each.clone() for each in masters]
            for own, master in zip(self.mean.shares, masters, strict=True):
                own.lerp_(master, 1 / count)
        return {"smooth/averaged": float(count)}

    def load(self) -> None:
        """Replace the model's weights with the mean, after the last step. A collective."""
        assert self.mean.shares is not None
        self.engine.use_weights(self.engine.as_live(self.mean.shares))


def gradient_of(steps: Steps, plan: Plan, weights: Mapping[str, float], check: Check) -> dict[str, Tensor]:
    """Put the gradient of some terms with these weights into the engine; return each one's loss.

    Means over the step that they need are those at the engine's current weights. A collective.
    """
    terms = [term for term in steps.terms if term.name in weights]
    losses = steps.backward(plan, weights, steps.means(plan, terms))
    factors = losses.new_tensor([weights[term.name] for term in terms])
    check(float(steps.engine.world.sum((factors * losses).sum())), plan)
    return {term.name: loss for term, loss in zip(terms, losses, strict=True)}


def noise(own: ParameterSlice, seeds: Sequence[int], device: torch.device) -> Tensor:
    """Return a slice's part of the parameter's standard normal numbers, fp32 [length]."""
    name, size = zlib.crc32(own.name.encode()), min(_DRAWN, own.shape.numel())
    first, last = own.at // size, (own.at + own.length - 1) // size
    pieces = []
    for piece in range(first, last + 1):
        seed = np.random.SeedSequence([*seeds, name, piece]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(device).manual_seed(int(seed) >> 1)
        pieces.append(torch.randn(size, generator=generator, device=device))
    return torch.cat(pieces)[own.at - first * size :][: own.length]
