"""Search for tokens after the prompt that bring forgotten answers back (GCG).

Greedy coordinate gradient (arXiv 2307.15043): the gradient of the loss by the one-hot tokens ranks, at each
place, the tokens that promise most; of random candidates that differ from the current tokens in one place,
the one with the lowest loss is kept. Here one run of tokens is searched for all questions, with the true
answers of one half of the forget questions, and the other half is scored. The retain model's evaluation gives
the same attack on a model that has nothing to remember: the difference counts.

The tokens are put after the prompt as they are; the text that they spell may be tokenised otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.variants._base import Workbench
from eval.variants._prompt_search import (
    Begun,
    Search,
    Slots,
    begin,
    embedded,
    score_rest,
    search_problems,
    searched,
)
from unlearn.config import RunConfig, Section, Seed
from unlearn.files import write_json

SETS: tuple[str, ...] = ()
KEYS = r"token_prompt/[^/]+"
"""Prefix of a benchmark's keys."""
ATTACK = True


class Options(Section):
    """Options of the variant.

    - `tokens`: how many tokens are searched.
    - `steps`: after so many steps the held-out forget questions are scored.
    - `top`: of each place, so many tokens are candidates.
    - `candidates`: how many are tried in a step.
    - `batch`: questions of a step, for which each candidate is tried.
    - `opening`: search for answers that begin so, in place of the true ones: `Sure, the answer is`.
    - `start`: a text whose last token all places start with.
    - `seed`: of the candidates and of the order of the questions.
    """

    tokens: int = 20
    steps: tuple[int, ...] = (100,)
    top: int = 256
    candidates: int = 128
    batch: int = 5
    opening: str | None = None
    start: str = "!"
    seed: Seed = 0


def check(options: Options, config: RunConfig) -> list[str]:
    return search_problems(options, config) + [
        f"{key}={value}: it must be above 0"
        for key in ("top", "candidates")
        if not (value := getattr(options, key)) > 0
    ]


def identity(options: Options) -> Any:
    return options.model_dump()


def examples(bench: Workbench, options: Options) -> Any:
    return searched(bench, "token_prompt")


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `token_prompt/<steps>/…` of the held-out forget questions; write the tokens to prompts.json.

    `token_prompt/<steps>/loss` is the mean NLL of a token of what was searched for, in that half, and
    `token_prompt/examples` how many examples that half has.

    Raises:
        UserError: there are too few forget questions, or the start has no token.
    """
    with begin(bench, options, "token_prompt") as begun:
        return _measured(bench, options, begun)


def _measured(bench: Workbench, options: Options, begun: Begun) -> dict[str, float]:
    search, text = begun.search, begun.text
    rows = embedded(search.model, text.tolist())
    draws = np.random.default_rng(options.seed)
    tokens = np.full(options.tokens, begun.start)
    metrics = {
        "token_prompt/0/loss": search.loss(tokens.tolist()),
        "token_prompt/examples": float(len(begun.divided.searched)),
    }
    reached: dict[str, Any] = {}
    for made, batch in enumerate(search.batches(max(options.steps), options.batch, options.seed), start=1):
        gradient = _gradient(search, tokens, batch)
        choices = text[promising(gradient, rows, options.top).cpu().numpy()]
        tried = candidates(tokens, choices, options.candidates, draws)
        tokens = tried[int(np.argmin(search.losses(tried, batch)))]
        if made in options.steps:
            label, made_of = f"token_prompt/{made}", tokens.tolist()
            metrics[f"{label}/loss"] = search.loss(made_of)
            reached[str(made)] = {"tokens": made_of, "text": bench.encoder.tokenizer.decode(made_of)}
            metrics |= score_rest(bench, search, label, made_of, begun.divided)
    file = bench.directory / "eval" / "token_prompt" / "prompts.json"
    bench.world.on_main(lambda: write_json(file, reached))
    return metrics


def _gradient(search: Search, tokens: np.ndarray, batch: Sequence[int]) -> Tensor:
    """Return the gradient [k, D] of the batch's loss by the tokens' embeddings."""
    slots = Slots(search.model, tokens.tolist(), embedded(search.model, tokens.tolist()))
    try:
        return search.gradient(slots, batch)[1]
    finally:
        slots.remove()


def promising(gradient: Tensor, rows: Tensor, top: int) -> Tensor:
    """Return the numbers [k, top] of the rows [V, D] that a step to their embedding lowers the loss most.

    To first order a token's loss is the product of its embedding with the gradient [k, D].
    """
    products: Tensor = gradient @ rows.T
    return torch.topk(-products, min(top, len(rows)), dim=1).indices


def candidates(tokens: np.ndarray, choices: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """Return the tokens [k] and `count` others, [count + 1, k]: each has one place from its choices [k, top].

    The tokens themselves are first, so that they are kept where no other is better.
    """
    tried = np.repeat(tokens[None], count + 1, axis=0)
    places = draws.integers(len(tokens), size=count)
    tried[np.arange(1, count + 1), places] = choices[places, draws.integers(choices.shape[1], size=count)]
    return tried
