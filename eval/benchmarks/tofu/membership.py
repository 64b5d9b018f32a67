"""Membership attacks on TOFU: forget examples against holdout examples, on which no model was trained.

Scores and their directions are those of `eval.metrics.mia`, all of the answer's tokens after its question.
zlib compresses only the answer's text. Loss, ZLib and Reference count the end token; Min-K, Min-K++ and
GradNorm do not. OpenUnlearning does the same, and the scores of each example agree with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from eval.benchmark import Sets
from eval.benchmarks.tofu.published_logs import PublishedLog
from eval.benchmarks.tofu.sets import answers
from eval.collection.records import Records
from eval.collection.requests import GradientNorm
from eval.metrics import mia
from eval.metrics.likelihood import missing, without_end

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")
_SETS = ("forget", "holdout")
_LOGGED_K = 0.4  # share of tokens in the Min-K of published logs

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Membership:
    """Metrics of the attacks. `columns`: set → attack → score of each example, [E]."""

    metrics: dict[str, float]
    columns: dict[str, Scores] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Retain:
    """The retain model's mean NLLs by set, where they fit the examples, and its AUC of Min-K."""

    nll: Scores | None
    auc: float
    problems: list[str]


def gradient_requests(sets: Sets) -> list[GradientNorm]:
    """Return `forget/gradients` and `holdout/gradients`."""
    if not all(sets.get(name) for name in _SETS):
        return []
    return [GradientNorm(f"{name}/gradients", answers(name, sets[name])["answer"]) for name in _SETS]


def membership(
    read: Records, retain: Records | PublishedLog | None, sets: Sets, *, k: float, gradients: bool
) -> Membership:
    """Return each attack's AUC with interval and true positives, and PrivLeak; nothing without both sets.

    Reference and PrivLeak need a retain model and are absent without one.
    """
    if not all(name in sets for name in _SETS):
        return Membership({})
    made = [a for a in ATTACKS if (a != "gradnorm" or gradients) and (a != "reference" or retain is not None)]
    nothing = dict.fromkeys([f"tofu/mia/{attack}" for attack in made], np.nan)
    if retain is not None:
        nothing["tofu/privleak"] = np.nan
    for name in _SETS:
        if not sets[name]:
            return Membership(nothing, problems=[f"tofu/mia: the set {name} has no examples to attack"])
    scores = {name: _scores(read, name, sets, k, gradients) for name in _SETS}
    problems: list[str] = []
    metrics = nothing
    if retain is not None:
        theirs = _published(retain, sets, k) if isinstance(retain, PublishedLog) else _own(retain, sets, k)
        problems += theirs.problems
        if theirs.nll is not None:
            for name in _SETS:
                scores[name]["reference"] = mia.reference(scores[name]["loss"], theirs.nll[name])
        auc = mia.auc(*(scores[name]["min_k"] for name in _SETS))
        metrics["tofu/privleak"] = mia.privleak(auc, theirs.auc)
    for attack in scores["forget"]:
        metrics |= _metrics(attack, *(scores[name][attack] for name in _SETS))
    return Membership(metrics, scores, problems + _unmeasured(scores))


def _scores(read: Records, name: str, sets: Sets, k: float, gradients: bool) -> Scores:
    items = answers(name, sets[name])["answer"]
    records = read.likelihood(f"{name}/answer").select(items)
    logp, mean, variance = (
        without_end(rows, records.ended) for rows in (records.logp, records.mean, records.variance)
    )
    scores = {
        "loss": mia.loss(records.logp),
        "zlib": mia.zlib_entropy(records.logp, [item.answer for item in items]),
        "min_k": mia.min_k(logp, k),
        "min_k_plus_plus": mia.min_k_plus_plus(logp, mean, variance, k),
    }
    if gradients:
        scores["gradnorm"] = read.norms(f"{name}/gradients").select(items).norm
    return scores


def _metrics(attack: str, forget: np.ndarray, holdout: np.ndarray) -> dict[str, float]:
    result, key = mia.attack(forget, holdout), f"tofu/mia/{attack}"
    return {
        key: result.auc,
        f"{key}_low": result.low,
        f"{key}_high": result.high,
        f"{key}_tpr_at_0.01": result.tpr[0.01],
        **missing(key, np.concatenate([forget, holdout])),
    }


def _unmeasured(scores: dict[str, Scores]) -> list[str]:
    """Return the sets of which an attack could measure no example."""
    problems = []
    for name, columns in scores.items():
        attacks = [attack for attack, values in columns.items() if np.isnan(values).all()]
        if attacks:
            problems.append(
                f"tofu/mia: no example of the set {name} could be measured by {', '.join(attacks)}"
            )
    return problems


def _own(retain: Records, sets: Sets, k: float) -> _Retain:
    lacking = [name for name in _SETS if not retain.has(f"{name}/answer")]
    if lacking:
        problem = (
            f"tofu/mia/reference, tofu/privleak: the retain model was evaluated without the set {lacking[0]} "
            f"({retain.directory}): evaluate it again with this dataset"
        )
        return _Retain(None, np.nan, [problem])
    records = {
        name: retain.likelihood(f"{name}/answer").select(answers(name, sets[name])["answer"])
        for name in _SETS
    }
    auc = mia.auc(*(mia.min_k(without_end(records[name].logp, records[name].ended), k) for name in _SETS))
    return _Retain({name: mia.loss(records[name].logp) for name in _SETS}, auc, _no_value(auc))


def _published(log: PublishedLog, sets: Sets, k: float) -> _Retain:
    problems: list[str] = []
    losses: Scores = {}
    for name in _SETS:
        nll, wanted = log.nll(name), len(sets[name])
        if nll is None:
            problems.append(f"tofu/mia/reference: {log.path} has no losses of the set {name}")
        elif len(nll) != wanted:
            problems.append(
                f"tofu/mia/reference: {log.path} has {len(nll)} examples of the set {name} and the dataset "
                f"{wanted}, so it is not known which belong together, and tofu/privleak compares with an "
                "AUC of other examples; give a log of the same split"
            )
        else:
            losses[name] = nll
    auc = log.auc.get("min_k", np.nan)
    if np.isnan(auc):
        problems.append(
            f"tofu/privleak: {log.path} has no AUC of the attack min_k (of OpenUnlearning's logs)"
        )
    elif k != _LOGGED_K:
        problems.append(
            f"tofu/privleak: the AUC in {log.path} is of min_k={_LOGGED_K}, this one of min_k={k}"
        )
        auc = np.nan
    else:
        problems += _no_value(auc)
    return _Retain(losses if len(losses) == len(_SETS) else None, auc, problems)


def _no_value(retain_auc: float) -> list[str]:
    if np.isnan(retain_auc):
        return ["tofu/privleak: the retain model has no AUC of min_k to compare with"]
    if retain_auc == 1:
        return [
            "tofu/privleak: the retain model itself tells forget from holdout without fail (AUC 1) and is no "
            "measure; was it trained without the forget set?"
        ]
    return []
