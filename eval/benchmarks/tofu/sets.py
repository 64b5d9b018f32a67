"""Requests and scores of one set of TOFU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import BenchmarkError, question_of
from eval.benchmarks.tofu.published_logs import TAUGHT, WITH_OPTIONS
from eval.collection.ragged import Ragged
from eval.collection.records import Records
from eval.collection.requests import Answer, Generation, Likelihood, Prompt, Request
from eval.metrics.fluency import distinct
from eval.metrics.likelihood import (
    TruthRatioForm,
    aggregate,
    closeness_to_one,
    exact_memorization,
    extraction_strength,
    log_truth_ratio,
    mean_nll,
    of_numbers,
    option_probability,
    probability,
    truth_preference,
    truth_probability,
)
from eval.metrics.text import rouge
from eval.metrics.words import Words
from unlearn.data.example import Example

# Of answers that no model was trained on, these are in the examples, without a mean.
_MEMORIZATION = ("extraction_strength", "exact_memorization")


@dataclass(frozen=True)
class SetScores:
    """Scores of a set. `columns` [E] have the truth ratio as R; `texts` is None without generations."""

    metrics: dict[str, float]
    columns: dict[str, np.ndarray]
    log_ratio: np.ndarray
    texts: Sequence[str | None] | None


def set_requests(name: str, examples: Sequence[Example], max_new_tokens: int | None) -> list[Request]:
    """Return `<set>/<kind>` of the kinds of `answers`, and `<set>/generation` if `max_new_tokens` is set."""
    if not examples:
        raise BenchmarkError(f"tofu: the set {name} has no examples: give it some, or leave it out")
    wanted: list[Request] = [
        Likelihood(f"{name}/{kind}", items) for kind, items in answers(name, examples).items()
    ]
    if max_new_tokens is not None and name != "holdout":
        wanted.append(Generation(f"{name}/generation", _prompts(examples), max_new_tokens))
    return wanted


def answers(name: str, examples: Sequence[Example]) -> dict[str, tuple[Answer, ...]]:
    """Return answers to score by kind, without kinds that no example of the set has.

    `answer` is the true one, `perturbed` are wrong ones, `paraphrased` is the true one in other words, and
    `rephrased` the true one after the question in other words. A holdout set has only the first.
    """
    by_kind = {"answer": tuple(Answer(e.id, 0, question_of(e, "tofu"), e.answer) for e in examples)}
    if name in TAUGHT:
        by_kind["paraphrased"] = tuple(
            Answer(e.id, 0, question_of(e, "tofu"), e.paraphrased_answer)
            for e in examples
            if e.paraphrased_answer is not None
        )
        by_kind["rephrased"] = tuple(
            Answer(e.id, 0, e.paraphrased_question, e.answer) for e in examples if e.paraphrased_question
        )
    if name != "holdout":
        by_kind["perturbed"] = tuple(
            Answer(e.id, slot, question_of(e, "tofu"), text)
            for e in examples
            for slot, text in enumerate(e.perturbed_answers)
        )
    return {kind: items for kind, items in by_kind.items() if items}


def set_scores(
    read: Records, name: str, examples: Sequence[Example], form: TruthRatioForm | None, words: Words | None
) -> SetScores:
    """Return the metrics of a set and their values per example.

    Without `words` there are no generations, without `form` no truth ratios: `log_ratio` is empty.
    """
    items = answers(name, examples)
    likelihood = read.likelihood(f"{name}/answer").select(items["answer"])
    columns = {"probability": probability(mean_nll(likelihood.logp))}
    log_ratio = np.empty(0)
    if form is not None:
        base, perturbed, log_ratio = _ratio(read, name, examples, form)
        if "paraphrased" in items:
            columns["paraphrased_probability"] = probability(base)
        if {"paraphrased", "perturbed"} <= items.keys():
            columns["truth_probability"] = truth_probability(base, perturbed, form)
        if name in WITH_OPTIONS:
            columns["probability"] = option_probability(mean_nll(likelihood.logp), perturbed)
    texts = None
    if words is not None:
        texts = read.generation(f"{name}/generation").select(_prompts(examples)).text
        columns |= vars(rouge([e.answer for e in examples], texts, words))
        if name in TAUGHT:  # the other sets have answers of a name or two
            missing = np.array([text is None for text in texts], dtype=bool)
            columns["distinct_4"] = np.where(missing, np.nan, distinct([text or "" for text in texts], 4))
    for metric, measure in zip(_MEMORIZATION, (extraction_strength, exact_memorization), strict=True):
        columns[metric] = of_numbers(measure(likelihood.correct, likelihood.ended), likelihood.logp)
    if "rephrased" in items:
        records = read.likelihood(f"{name}/rephrased").select(items["rephrased"])
        strength = of_numbers(extraction_strength(records.correct, records.ended), records.logp)
        columns["extraction_strength_paraphrased"] = _placed(strength, records.example, examples).mean()
    metrics: dict[str, float] = {}
    for metric, values in columns.items():
        if name in TAUGHT or metric not in _MEMORIZATION:
            metrics |= aggregate(f"tofu/{name}/{metric}", values)
    if form is not None and name != "holdout":
        summary = closeness_to_one if name == "forget" else truth_preference
        metrics |= aggregate(f"tofu/{name}/truth_ratio", summary(log_ratio))
        with np.errstate(over="ignore"):
            columns["truth_ratio"] = np.exp(log_ratio)
    return SetScores(metrics, columns, log_ratio, texts)


def log_ratio(read: Records, name: str, examples: Sequence[Example], form: TruthRatioForm) -> np.ndarray:
    """Return log R of each example, [E]; see `eval.metrics.likelihood.log_truth_ratio`."""
    return _ratio(read, name, examples, form)[2]


def _ratio(
    read: Records, name: str, examples: Sequence[Example], form: TruthRatioForm
) -> tuple[np.ndarray, Ragged, np.ndarray]:
    """Return the NLL of the paraphrased answer (of options: the answer), of the wrong ones, and log R."""
    items = answers(name, examples)

    def nll(kind: str) -> Ragged:
        if kind not in items:
            return Ragged.of([[] for _ in examples])
        records = read.likelihood(f"{name}/{kind}").select(items[kind])
        return _placed(mean_nll(records.logp), records.example, examples)

    base, perturbed = nll("answer" if name in WITH_OPTIONS else "paraphrased").mean(), nll("perturbed")
    return base, perturbed, log_truth_ratio(base, perturbed, form)


def _placed(values: np.ndarray, owners: Sequence[str], examples: Sequence[Example]) -> Ragged:
    return Ragged.grouped(values, owners, [e.id for e in examples])


def _prompts(examples: Sequence[Example]) -> tuple[Prompt, ...]:
    return tuple(Prompt(e.id, question_of(e, "tofu")) for e in examples)
