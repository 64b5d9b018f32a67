"""Which weights a model is loaded with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """Weights of a model: a hub id or folder (None: the model's own path), and what identifies them."""

    source: str | None
    key: str
