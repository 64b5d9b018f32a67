"""The weights that a model is loaded with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """A hub id or folder with weights (None: `model.path`), and a key that identifies them."""

    source: str | None
    key: str
