"""Prompt ends and padding of the batch in a forward pass, as a context variable for edits inside the model.

Edits act at the end of the prompt or count over its tokens, which the model's inputs do not show. The caller
of the model sets the layout; an edit that finds none raises an error.
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

    `prompt_end` [B] is the position of the last prompt token in the padded row; `valid` [B, T] is true for
    tokens and false for padding. `index` [N] are the positions in the flattened [B·T] that the output head
    runs on; None: the model chooses them. In generation T is the width of the input, and every generated
    token counts as valid.
    """

    prompt_end: Tensor
    valid: Tensor
    index: Tensor | None = None


def right_padded(prompt_end: Tensor, widths: Tensor, width: int, index: Tensor | None = None) -> Layout:
    """Return the layout of rows [B, `width`] that begin with their `widths` [B] real tokens."""
    return Layout(prompt_end, torch.arange(width, device=widths.device) < widths[:, None], index)


def left_padded(prompts: Tensor, widths: Tensor, width: int, device: torch.device) -> Layout:
    """Return the layout, on `device`, of rows [B, `width`] that end with their `widths` [B] real tokens.

    The first `prompts` [B] of these tokens are the prompt, the others the answer so far.
    """
    first = width - widths
    valid = torch.arange(width, device=widths.device) >= first[:, None]
    return Layout((first + prompts - 1).to(device), valid.to(device))


def all_prompt(input_ids: Tensor) -> Layout:
    """Return the layout of rows [B, T] without padding that consist of prompt tokens only."""
    ends = torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)
    return Layout(ends, torch.ones_like(input_ids, dtype=torch.bool))


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Set the layout for the model calls in this block."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def current_layout() -> Layout | None:
    """Return the layout of the innermost `laid_out` block; None outside of any."""
    return _LAYOUT.get()
