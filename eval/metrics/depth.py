"""Unlearning depth from log-probabilities under activation patching; pure functions on arrays.

Drops are [E, L]: by how many nats the mean log-probability of each example's span falls where the output of
block l is another model's. NaN means "could not be measured".
"""

from __future__ import annotations

import numpy as np


def depth_score(retain_drop: np.ndarray, drop: np.ndarray, threshold: float = 0.05) -> np.ndarray:
    """Return the unlearning depth score of each example, [E]: 1, erased as if never learned; 0, all there.

    A block encodes the example where the retain model's states cost more than the threshold. Each of these
    blocks counts with that drop Δ1, and is erased to the share clip(Δ2 ÷ Δ1, 0, 1) that the unlearned model's
    states cost as well: Σ Δ1·share ÷ Σ Δ1. NaN where no block encodes the example. (UDS, arXiv 2605.24614,
    as in its `compute_uds.py`.)

    Raises:
        ValueError: the arrays differ in shape, or the threshold is below 0.
    """
    if threshold < 0:
        raise ValueError(f"threshold={threshold}: a drop counts from 0 nats on")
    weights = np.where(encoding(retain_drop, threshold), retain_drop, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights * erased_share(retain_drop, drop)).sum(-1) / weights.sum(-1))


def encoding(retain_drop: np.ndarray, threshold: float = 0.05) -> np.ndarray:
    """Return which blocks encode each example, bool [E, L]: where the drop exceeds the threshold."""
    return np.asarray(retain_drop > threshold)


def erased_share(retain_drop: np.ndarray, drop: np.ndarray) -> np.ndarray:
    """Return clip(Δ2 ÷ Δ1, 0, 1), [E, L]; 0 where the retain model's states cost nothing.

    Raises:
        ValueError: the arrays differ in shape.
    """
    if retain_drop.shape != drop.shape:
        raise ValueError(f"drops of shape {retain_drop.shape} and {drop.shape}: they are of the same blocks")
    known = np.where(retain_drop > 0, retain_drop, 1.0)
    return np.where(retain_drop > 0, np.clip(drop / known, 0.0, 1.0), 0.0)


def over_encoding(values: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """Return the mean of each block's values over the examples that it encodes, [L]; NaN for none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(encoded, values, 0.0).sum(0) / encoded.sum(0))
