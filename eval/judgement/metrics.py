"""Declare the metrics of the judgement itself."""

from __future__ import annotations

from eval.benchmark import Better, Metric

METRICS = {
    "judged/forget_efficacy": Metric(
        "how little of the forget set is left · harmonic mean", Better.HIGHER, level=1,
        views=("forgetting", "default"),
    ),
    "judged/utility": Metric(
        "what is left of the target's abilities · harmonic mean", Better.HIGHER, level=1,
        views=("utility", "default"),
    ),
    "judged/privacy": Metric(
        "membership attacks find what they find in the retain model · harmonic mean", Better.HIGHER, level=1
    ),
    "judged/robustness": Metric(
        "share of the forgetting that the worst attack leaves · least", Better.HIGHER, level=1
    ),
    "judged/aggregate": Metric(
        "OpenUnlearning's harmonic mean of memorisation, privacy and utility (arXiv 2506.12618)",
        Better.HIGHER, level=1,
    ),
}  # fmt: skip
