"""The weighted sum of all terms: one backward pass, no state."""

from __future__ import annotations

from unlearn.rules import Stateless


class WeightedSum(Stateless):
    """g = Σ weight · ∇term."""
