"""Where the weights of a model come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightsSource:
    """A hub id or folder with weights (None: `model.path`), and a key that identifies them."""

    source: str | None
    key: str
