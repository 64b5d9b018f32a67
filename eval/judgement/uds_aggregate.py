"""The aggregates of UDS (arXiv 2605.24614), from the columns of its published `method_results.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from eval.metrics.likelihood import harmonic_mean

MEMORISATION = ("one_minus_es", "one_minus_em", "one_minus_paraprob", "one_minus_truth")
ATTACKS = ("s_loss", "s_zlib", "s_mink", "s_minkpp")
UTILITY = tuple(
    f"{name}_{metric}" for name in ("retain", "ra", "wf") for metric in ("q_prob", "q_rouge", "truth_ratio")
)
AGGREGATES = ("mem", "privacy_mia", "privacy", "model_utility", "utility", "utility_rel", "overall")
_ADDED = (
    1e-12  # to each value before a harmonic mean: with it the published numbers follow to the last digits
)


def uds_aggregates(columns: Mapping[str, float], full_utility: float) -> dict[str, float]:
    """Return `AGGREGATES` of one model from its other columns.

    full_utility: the full model's `utility` at the same number of epochs.
    """
    mem = harmonic_mean(np.array([columns[name] for name in MEMORISATION]))
    privacy_mia = _harmonic(columns[name] for name in ATTACKS)
    privacy = _harmonic([privacy_mia, columns["uds"]])
    model_utility = _harmonic(columns[name] for name in UTILITY)
    utility = _harmonic([model_utility, columns["fluency"]])
    utility_rel = min(utility / (full_utility + _ADDED), 1.0)
    overall = _harmonic([mem, privacy, utility_rel])
    values = (mem, privacy_mia, privacy, model_utility, utility, utility_rel, overall)
    return dict(zip(AGGREGATES, values, strict=True))


def _harmonic(values: Iterable[float]) -> float:
    return harmonic_mean(np.array(list(values), dtype=np.float64) + _ADDED)
