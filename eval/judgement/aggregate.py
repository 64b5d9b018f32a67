"""OpenUnlearning's one number: the harmonic mean of memorisation, privacy and utility (arXiv 2506.12618, App.
F).

- Memorisation: harmonic mean of 1 − extraction strength, 1 − exact memorisation, 1 − probability of the
  paraphrased answer and 1 − the truth's share among true and false answers, as in forget efficacy.
- Privacy: harmonic mean over the attacks Loss, ZLib, Min-K and Min-K++ of the closeness of their AUC to the
  retain model's. The paper does not print that closeness; `eval.judgement.closeness` chooses between a third
  party's guess and the form of UDS (arXiv 2605.24614).
- Utility: harmonic mean of the shares of the target's model utility and of its fluency. Each is at most 1
  here, which is ours: a gain does not hide a loss. Fluency needs `eval.benchmarks.tofu.gibberish`.

It is a number only where every part was measured: a mean of fewer parts is another metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from eval.metrics.likelihood import harmonic_mean
from eval.metrics.mia import ClosenessForm, closeness

MEMORISATION = tuple(
    f"tofu/forget/{name}"
    for name in ("extraction_strength", "exact_memorization", "paraphrased_probability", "truth_probability")
)
PRIVACY = tuple(f"tofu/mia/{attack}" for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"))
UTILITY = ("tofu/model_utility", "tofu/forget/fluency")


def aggregate_parts(
    own: Mapping[str, float], target: Mapping[str, float], retain: Mapping[str, float], form: ClosenessForm
) -> dict[str, float]:
    """Return memorisation, privacy and utility, each in [0, 1] by its formula; NaN where a metric is missing.

    own, target, retain: flat results; without a key, or NaN, a metric is missing.
    """

    def value(results: Mapping[str, float], key: str) -> float:
        return results.get(key, math.nan)

    parts = {
        "memorisation": [1 - value(own, key) for key in MEMORISATION],
        "privacy": [closeness(value(own, key), value(retain, key), form) for key in PRIVACY],
        "utility": [_share(value(own, key), value(target, key)) for key in UTILITY],
    }
    return {name: _harmonic(values) for name, values in parts.items()}


def aggregate_of(parts: Mapping[str, float]) -> float:
    """Return the harmonic mean of the parts; 0 if one is 0, NaN if one is."""
    return _harmonic(list(parts.values()))


def _share(own: float, target: float) -> float:
    return float(np.minimum(own / target, 1.0)) if target > 0 else math.nan


def _harmonic(values: list[float]) -> float:
    return harmonic_mean(np.clip(values, 0.0, 1.0))
