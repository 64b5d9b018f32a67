"""Training or evaluation mode of a model's modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, without gradients; restore each module's mode at the end."""
    with kept_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Restore each module's mode, training or evaluation, at the end."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
