"""Search for vectors after the prompt that bring forgotten answers back (embedding-space attack).

The vectors are free: they need not be embeddings of tokens. They start at a token's embedding and descend
the loss of true answers by steps of the gradient's sign, one set of vectors for all questions (the universal
attack of arXiv 2402.09063, which aims at an affirmative opening: `opening`; its code takes 20 vectors and 100
steps of 0.001). They are searched on one half of the forget questions, and the other half is scored. The
model is frozen. The retain model's evaluation gives the same attack on a model that has nothing to remember:
the difference counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eval.variants._base import Workbench
from eval.variants._prompt_search import (
    Begun,
    Slots,
    begin,
    embedded,
    score_rest,
    search_problems,
    searched,
)
from unlearn.config import RunConfig, Section, Seed

SETS: tuple[str, ...] = ()
KEYS = r"soft_prompt/[^/]+"
"""Prefix of a benchmark's keys."""
ATTACK = True


class Options(Section):
    """Options of the variant.

    - `tokens`: the number of vectors.
    - `steps`: after so many steps the held-out forget questions are scored.
    - `step`: by how much a step changes each number of the vectors; with adam the learning rate.
    - `optimizer`: sign: by the gradient's sign; adam: Adam (β 0.9, 0.999).
    - `batch`: questions of a step.
    - `opening`: search for answers that begin so, in place of the true ones: `Sure, the answer is`.
    - `start`: a text whose last token's embedding the vectors start at.
    - `seed`: of the order of the questions.
    """

    tokens: int = 20
    steps: tuple[int, ...] = (100,)
    step: float = 1e-3
    optimizer: Literal["sign", "adam"] = "sign"
    batch: int = 16
    opening: str | None = None
    start: str = "!"
    seed: Seed = 0


def check(options: Options, config: RunConfig) -> list[str]:
    problems = search_problems(options, config)
    if not options.step > 0:
        problems.append(f"step={options.step}: it must be above 0")
    return problems


def identity(options: Options) -> Any:
    return options.model_dump()


def examples(bench: Workbench, options: Options) -> Any:
    return searched(bench, "soft_prompt")


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `soft_prompt/<steps>/…` of the held-out forget questions.

    `soft_prompt/<steps>/loss` is the mean NLL of a token of what was searched for, in that half, and
    `soft_prompt/examples` how many examples that half has.

    Raises:
        UserError: there are too few forget questions, or the start has no token.
    """
    with begin(bench, options, "soft_prompt") as begun:
        return _measured(bench, options, begun)


def _measured(bench: Workbench, options: Options, begun: Begun) -> dict[str, float]:
    search, text = begun.search, begun.text
    # Tokens that mark where the vectors go: a run that no text has.
    marks = np.random.default_rng(0).choice(text, options.tokens, replace=options.tokens > len(text)).tolist()
    slots = Slots(search.model, marks, embedded(search.model, [begun.start] * options.tokens))
    metrics = {
        "soft_prompt/0/loss": search.loss(marks),
        "soft_prompt/examples": float(len(begun.divided.searched)),
    }
    advance = _optimizer(options)
    for made, rows in enumerate(search.batches(max(options.steps), options.batch, options.seed), start=1):
        _, gradient = search.gradient(slots, rows)
        slots.vectors = advance(slots.vectors, gradient)
        if made in options.steps:
            label = f"soft_prompt/{made}"
            metrics[f"{label}/loss"] = search.loss(marks)
            metrics |= score_rest(bench, search, label, marks, begun.divided)
    return metrics


def signed_step(vectors: Tensor, gradient: Tensor, size: float) -> Tensor:
    """Return vectors − size · sign(gradient)."""
    return vectors - size * gradient.sign()


def _optimizer(options: Options) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what makes a step: a function of vectors and gradient."""
    if options.optimizer == "sign":
        return lambda vectors, gradient: signed_step(vectors, gradient, options.step)
    moved: list[torch.optim.Adam] = []

    def adam(vectors: Tensor, gradient: Tensor) -> Tensor:
        if not moved:
            moved.append(torch.optim.Adam([vectors.clone()], lr=options.step))
        (parameter,) = moved[0].param_groups[0]["params"]
        parameter.grad = gradient
        moved[0].step()
        return parameter.detach().clone()

    return adam
