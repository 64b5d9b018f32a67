"""Where the prompts of a batch end and which of its positions are real: what a model itself is not told.

Edits inside a model act at the end of the prompt or count over its tokens. Whoever calls the model says so
around the call; a call without it is an error rather than a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The rows of a batch [B, T], padded on either side.

    `prompt_end` [B] is the position of the last prompt token in the padded row; `valid` [B, T] tells real
    tokens from padding. `index` [N] are the positions in the flattened [B·T] that the output head runs on,
    None where it is left to the model. In generation T is the width of what generation starts from, and every
    token that it adds is real.
    """

    prompt_end: Tensor
    valid: Tensor
    index: Tensor | None = None


def right_padded(prompt_end: Tensor, widths: Tensor, width: int, index: Tensor | None = None) -> Layout:
    """The layout of rows [B, `width`] that begin with their `widths` [B] real tokens."""
    return Layout(prompt_end, torch.arange(width, device=widths.device) < widths[:, None], index)


def left_padded(prompts: Tensor, widths: Tensor, width: int, device: torch.device) -> Layout:
    """The layout, on `device`, of rows [B, `width`] that end with their `widths` [B] real tokens: `prompts`
    [B] of them the prompt, the others an answer so far."""
    first = width - widths
    valid = torch.arange(width, device=widths.device) >= first[:, None]
    return Layout((first + prompts - 1).to(device), valid.to(device))


def all_prompt(input_ids: Tensor) -> Layout:
    """The layout of rows [B, T] without padding that are prompt to their end."""
    ends = torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)
    return Layout(ends, torch.ones_like(input_ids, dtype=torch.bool))


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Calls of a model in this block are passes over that layout."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def current_layout() -> Layout | None:
    """The innermost layout around this call; None outside of any."""
    return _LAYOUT.get()
