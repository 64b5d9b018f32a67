"""TOFU (arXiv 2401.06121): knowledge of fictitious authors, and of everything else.

Sets: `forget` and `retain` with a paraphrased answer, a paraphrased question and perturbed answers,
`real_authors` and `world_facts` with perturbed ones, `holdout` for membership attacks. Any may be absent,
together with the metrics that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from eval.benchmark import BenchmarkError, Result, Role, Sets, without_words
from eval.benchmarks.tofu.log_columns import PublishedLogError
from eval.benchmarks.tofu.membership import gradient_requests, membership
from eval.benchmarks.tofu.metrics import METRICS
from eval.benchmarks.tofu.published_logs import TAUGHT, WITH_OPTIONS, PublishedLog, PublishedSet, read_log
from eval.benchmarks.tofu.sets import SetScores, log_ratio, set_requests, set_scores
from eval.collection.records import Records
from eval.collection.requests import Request
from eval.metrics.fluency import DetectorError, fluency, gibberish_detector
from eval.metrics.likelihood import TruthRatioForm, aggregate, forget_quality, harmonic_mean
from eval.metrics.words import Choice, words_of
from unlearn.config import Section
from unlearn.data.example import Example

__all__ = ["METRICS", "SETS", "Options", "read_baseline", "requests", "score"]

SETS: dict[str, Role] = {
    "forget_eval": "forget",
    "retain_eval": "retain",
    "real_authors": "utility",
    "world_facts": "utility",
    "holdout": "holdout",
}


FLUENCY_TOKENS = 32
"""Tokens of an answer that the gibberish detector reads, in OpenUnlearning's configuration of TOFU."""
_NAMES = tuple(name.removesuffix("_eval") for name in SETS)
_NINE = [
    f"tofu/{name}/{metric}"
    for name in ("retain", "real_authors", "world_facts")
    for metric in ("probability", "rougeL_recall", "truth_ratio")
]


class Options(Section):
    """Options of the benchmark.

    - `max_new_tokens`: longest answers.
    - `truth_ratio`: how the wrong answers are averaged: over their losses (`geometric`) or probabilities.
    - `generation`: generate answers of up to `max_new_tokens`; without them there is no ROUGE and no model
      utility.
    - `memorization_only`: read true answers of the forget, the retain and the holdout set and nothing else:
      probability, extraction strength, exact memorization and the attacks (`gradients=false` leaves out the
      costly one).
    - `gibberish`: hub id or folder of a classifier of whether answers to the forget and the retain set are
      language, of their first 32 tokens; madhurjindal/autonlp-Gibberish-Detector-492513457 gives
      OpenUnlearning's fluency.
    - `words`: the tokenizer of ROUGE (`eval.metrics.words`).
    - `mia`: membership attacks, forget against holdout; two of them use the share `min_k` of the tokens.
    - `gradients`: with the attack by gradient norm, which costs a backward pass of both sets.
    - `min_k`: share of the least likely tokens in Min-K and Min-K++.
    """

    max_new_tokens: int = 200
    truth_ratio: TruthRatioForm = "geometric"
    generation: bool = True
    memorization_only: bool = False
    words: Choice = "auto"
    gibberish: str | None = None
    mia: bool = True
    gradients: bool = True
    min_k: float = 0.4

    @model_validator(mode="after")
    def _fit(self) -> Options:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: give at least 1, or generation=false")
        if self.memorization_only and self.gibberish is not None:
            raise ValueError("gibberish judges generated answers, which memorization_only=true leaves out")
        if not 0 < self.min_k <= 1:
            raise ValueError(f"min_k={self.min_k}: the share of tokens is above 0 and at most 1")
        return self


def requests(sets: Sets, options: Options) -> list[Request]:
    """Return those of `sets.set_requests` for each set, and `<set>/gradients` of two sets."""
    for name in sets:
        if name not in _NAMES:
            raise BenchmarkError(f"tofu scores no set {name!r}; it has: {', '.join(_NAMES)}")
    limit = options.max_new_tokens if _generates(options) else None
    wanted: list[Request] = []
    for name, examples in _scored(sets, options).items():
        wanted += set_requests(name, examples, limit)
    return wanted + (gradient_requests(sets) if options.mia and options.gradients else [])


def left_out(options: Options) -> set[str]:
    """Return the keys of `METRICS` that these options leave unmeasured."""
    attacks = {
        key for key in METRICS if key.startswith(("tofu/mia/", "tofu/holdout/")) or key == "tofu/privleak"
    }
    out = set() if options.mia else attacks
    if not options.gradients:
        out |= {"tofu/mia/gradnorm"}
    if options.memorization_only:
        out |= {key for key, metric in METRICS.items() if not metric.of_answers and key not in attacks}
    if not _generates(options):
        of_texts = ("rouge", "distinct_4", "fluency", "model_utility")
        out |= {key for key in METRICS if key.rpartition("/")[2].startswith(of_texts)}
    if options.gibberish is None:
        out |= {key for key in METRICS if key.endswith("/fluency")}
    return out


def read_baseline(path: Path) -> PublishedLog:
    """Return a published log of the retain model.

    Raises:
        PublishedLogError: it is no TOFU log, or rows are missing or not finite.
    """
    return read_log(path)


def score(read: Records, retain: Records | PublishedLog | None, sets: Sets, options: Options) -> Result:
    """Return metrics and rows per example; with `retain` forget quality, PrivLeak and Reference too."""
    metrics: dict[str, float] = {}
    problems: list[str] = []
    set_scores_by_name: dict[str, SetScores] = {}
    words: dict[str, str] = {}
    for name, examples in _scored(sets, options).items():
        chosen = None
        if _generates(options) and name != "holdout":
            true = [e.answer for e in examples]
            chosen = words_of(true, options.words)
            words[name] = chosen.name
            problems += without_words(f"{name}/generation", examples, true, chosen)
        form = None if options.memorization_only else options.truth_ratio
        set_scores_by_name[name] = set_scores(read, name, examples, form, chosen)
        metrics |= set_scores_by_name[name].metrics
    if options.gibberish is not None:
        more, trouble = _fluency(set_scores_by_name, options.gibberish)
        metrics, problems = metrics | more, problems + trouble
    if isinstance(retain, PublishedLog) and "forget" in set_scores_by_name:
        retain, trouble = _of_same_split(retain, sets["forget"])
        problems += trouble
    if "forget" in set_scores_by_name and retain is not None and not options.memorization_only:
        more, trouble = _forget_quality(set_scores_by_name["forget"].log_ratio, retain, sets, options)
        metrics, problems = metrics | more, problems + trouble
    if all(key in metrics for key in _NINE):
        metrics["tofu/model_utility"] = harmonic_mean(np.array([metrics[key] for key in _NINE]))
    columns = {name: scores.columns for name, scores in set_scores_by_name.items()}
    if options.mia:
        attacks = membership(read, retain, sets, k=options.min_k, gradients=options.gradients)
        metrics, problems = metrics | attacks.metrics, problems + attacks.problems
        for name, scores in attacks.columns.items():
            columns[name] = columns[name] | {f"mia_{attack}": values for attack, values in scores.items()}
    return Result(metrics, _rows(sets, set_scores_by_name, columns), problems, words)


def _scored(sets: Sets, options: Options) -> Sets:
    """Return the sets that are scored; a holdout set is for the attacks and may be empty."""
    scored = {name: own for name, own in sets.items() if name != "holdout" or (options.mia and len(own))}
    if not options.memorization_only:
        return scored
    alone = {name: [e.with_answer_alone() for e in own] for name, own in scored.items()}
    return {name: own for name, own in alone.items() if name not in WITH_OPTIONS}


def _generates(options: Options) -> bool:
    return options.generation and not options.memorization_only


def _fluency(scores: dict[str, SetScores], detector: str) -> tuple[dict[str, float], list[str]]:
    """Return `tofu/<set>/fluency` and add its values to the set's columns; NaN if the detector is absent."""
    written = {name: scores[name].texts for name in TAUGHT if name in scores}
    generated = {name: texts for name, texts in written.items() if texts is not None}
    if not generated:
        return {}, []
    metrics: dict[str, float] = {}
    try:
        classify = gibberish_detector(detector, max_tokens=FLUENCY_TOKENS)
    except DetectorError as error:
        classify, problems = None, [f"{', '.join(f'tofu/{name}/fluency' for name in generated)}: {error}"]
    else:
        problems = []
    for name, texts in generated.items():
        values = np.full(len(texts), np.nan)
        there = np.array([text is not None for text in texts], dtype=bool)
        if classify is not None:
            values[there] = fluency([text for text in texts if text is not None], classify)
        scores[name].columns["fluency"] = values
        metrics |= aggregate(f"tofu/{name}/fluency", values)
    return metrics, problems


def _of_same_split(log: PublishedLog, examples: Sequence[Example]) -> tuple[PublishedLog | None, list[str]]:
    """Return the log if its forget set can be this one, else why it cannot.

    Logs have no ids, so true answers are compared where the log has them; the original logs are of the first
    300 examples.
    """
    theirs = log.sets.get("forget", PublishedSet())
    ours = [_plain(example.answer) for example in examples]
    logged = [_plain(answer) for answer in theirs.answers or ()]
    few, many = sorted((ours, logged), key=len)
    if theirs.answers and len(set(few) & set(many)) * 2 < len(set(few)):
        return None, [
            f"{log.path} is of another forget set, of which the first answer is {theirs.answers[0]!r} and in "
            f"the dataset {examples[0].answer!r}: nothing was compared with it; give a log of the same split"
        ]
    if not len(theirs) or len(theirs) == len(ours) or (logged and few == many[: len(few)]):
        return log, []
    return log, [
        f"tofu/forget_quality: {log.path} has {len(theirs)} examples of the set forget and the dataset "
        f"{len(ours)}: if it is of another split, give a log of the same one"
    ]


def _plain(text: str) -> str:
    """Return a text without spaces, which tokenizers add and remove."""
    return "".join(text.split())


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
    return forget_quality(ours, theirs).under("tofu/forget_quality"), problems


def _rows(
    sets: Sets, set_scores: dict[str, SetScores], columns: dict[str, dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Return one row per example, all with the same columns; NaN where a set has no such value."""
    every = list(dict.fromkeys(key for own in columns.values() for key in own))
    rows: list[dict[str, Any]] = []
    for name, scores in set_scores.items():
        nothing = [float("nan")] * len(sets[name])
        values = [columns[name][key].tolist() if key in columns[name] else nothing for key in every]
        texts = scores.texts or [None] * len(sets[name])
        for example, text, *own in zip(sets[name], texts, *values, strict=True):
            row = {"set": name, "id": example.id, "question": example.question, "answer": example.answer}
            rows.append(row | {"generation": text} | dict(zip(every, own, strict=True)))
    return rows
