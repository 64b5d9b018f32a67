"""TOFU (arXiv 2401.06121): what a model still knows of fictitious authors, and of everything else.

Sets: `forget` and `retain` with a paraphrased answer, a paraphrased question and perturbed answers,
`real_authors` and `world_facts` with perturbed ones, `holdout` for membership attacks. Any may be absent;
then so are the metrics that need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.benchmark import BenchmarkError, Result, Role, Sets
from eval.benchmarks.tofu_membership import gradient_requests, membership
from eval.benchmarks.tofu_sets import SetScores, log_ratio, set_requests, set_scores
from eval.logrows import PublishedLogError
from eval.metrics.likelihood import TruthRatioForm, forget_quality, harmonic_mean
from eval.published import PublishedLog
from eval.records import Records
from eval.requests import Request

SETS: dict[str, Role] = {
    "forget_eval": "forget",
    "retain_eval": "retain",
    "real_authors": "utility",
    "world_facts": "utility",
    "holdout": "holdout",
}
_NAMES = tuple(name.removesuffix("_eval") for name in SETS)
_NINE = [
    f"tofu/{name}/{metric}"
    for name in ("retain", "real_authors", "world_facts")
    for metric in ("probability", "rougeL_recall", "truth_ratio")
]


@dataclass(frozen=True)
class Options:
    """`generation`: answers of up to `max_new_tokens`, without which there is no ROUGE and no model utility.

    `mia`: attacks of forget against holdout, with the share `min_k` of the tokens for two of them; the one by
    gradient norm, which costs a backward pass of both sets, only with `gradients`.
    """

    max_new_tokens: int = 200
    truth_ratio: TruthRatioForm = "geometric"
    generation: bool = True
    mia: bool = True
    gradients: bool = True
    min_k: float = 0.4

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: give at least 1, or generation=false")
        if self.truth_ratio not in ("geometric", "arithmetic"):
            raise ValueError(f"truth_ratio={self.truth_ratio}: choose geometric or arithmetic")
        if not 0 < self.min_k <= 1:
            raise ValueError(f"min_k={self.min_k}: the share of tokens is above 0 and at most 1")


def requests(sets: Sets, options: Options) -> list[Request]:
    """Per set those of `tofu_sets.answers` and `<set>/generation`; `<set>/gradients` of two sets."""
    for name in sets:
        if name not in _NAMES:
            raise BenchmarkError(f"tofu knows no set {name!r}; it has: {', '.join(_NAMES)}")
    limit = options.max_new_tokens if options.generation else None
    found: list[Request] = []
    for name, examples in _scored(sets, options).items():
        found += set_requests(name, examples, limit)
    return found + (gradient_requests(sets) if options.mia and options.gradients else [])


def score(read: Records, retain: Records | PublishedLog | None, sets: Sets, options: Options) -> Result:
    """Metrics and per-example rows; with `retain` also forget quality, PrivLeak and the Reference attack."""
    metrics: dict[str, float] = {}
    problems: list[str] = []
    found: dict[str, SetScores] = {}
    for name, examples in _scored(sets, options).items():
        found[name] = set_scores(read, name, examples, options.truth_ratio, options.generation)
        metrics |= found[name].metrics
    if "forget" in found and retain is not None:
        more, trouble = _forget_quality(found["forget"].log_ratio, retain, sets, options)
        metrics, problems = metrics | more, problems + trouble
    if all(key in metrics for key in _NINE):
        metrics["tofu/model_utility"] = harmonic_mean(np.array([metrics[key] for key in _NINE]))
    columns = {name: scores.columns for name, scores in found.items()}
    if options.mia:
        attacks = membership(read, retain, sets, k=options.min_k, gradients=options.gradients)
        metrics, problems = metrics | attacks.metrics, problems + attacks.problems
        for name, scores in attacks.columns.items():
            columns[name] = columns[name] | {f"mia_{attack}": values for attack, values in scores.items()}
    return Result(metrics, _rows(sets, found, columns), problems)


def _scored(sets: Sets, options: Options) -> Sets:
    """The sets that the model is asked about: a holdout set serves the attacks and may be empty."""
    return {name: own for name, own in sets.items() if name != "holdout" or (options.mia and len(own))}


def _forget_quality(
    ours: np.ndarray, retain: Records | PublishedLog, sets: Sets, options: Options
) -> tuple[dict[str, float], list[str]]:
    problems = []
    if isinstance(retain, PublishedLog):
        try:
            theirs = retain.log_truth_ratio(options.truth_ratio)
        except PublishedLogError as error:
            problems, theirs = [f"tofu/forget_quality: {error}"], np.empty(0)
    else:
        theirs = log_ratio(retain, "forget", sets["forget"], options.truth_ratio)
    quality = forget_quality(ours, theirs)
    metrics = {
        "tofu/forget_quality": quality.p,
        "tofu/forget_quality_log10": quality.log10_p,
        "tofu/forget_quality_ks": quality.statistic,
        "tofu/forget_quality_n": float(quality.n1),
        "tofu/forget_quality_retain_n": float(quality.n2),
    }
    return metrics, problems


def _rows(
    sets: Sets, found: dict[str, SetScores], columns: dict[str, dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """A row per example, all with the same columns: NaN where a set has no such value."""
    every = list(dict.fromkeys(key for own in columns.values() for key in own))
    rows: list[dict[str, Any]] = []
    for name, scores in found.items():
        nothing = [float("nan")] * len(sets[name])
        values = [columns[name][key].tolist() if key in columns[name] else nothing for key in every]
        texts = scores.texts or [None] * len(sets[name])
        for example, text, *own in zip(sets[name], texts, *values, strict=True):
            row = {"set": name, "id": example.id, "question": example.question, "answer": example.answer}
            rows.append(row | {"generation": text} | dict(zip(every, own, strict=True)))
    return rows
