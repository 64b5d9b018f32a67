"""TOFU (arXiv 2401.06121): what a model still knows of fictitious authors, and of everything else.

Sets: `forget` and `retain` with a paraphrased answer, a paraphrased question and perturbed answers,
`real_authors` and `world_facts` with perturbed ones, `holdout` for membership attacks. Any may be absent;
then so are the metrics that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.benchmark import BenchmarkError, Result, Role, Sets, without_words
from eval.benchmarks.tofu.log_columns import PublishedLogError
from eval.benchmarks.tofu.membership import gradient_requests, membership
from eval.benchmarks.tofu.published_logs import TAUGHT, PublishedLog, PublishedSet
from eval.benchmarks.tofu.sets import SetScores, log_ratio, set_requests, set_scores
from eval.collection.records import Records
from eval.collection.requests import Request
from eval.metrics.fluency import DetectorError, fluency, gibberish_detector
from eval.metrics.likelihood import TruthRatioForm, aggregate, forget_quality, harmonic_mean
from eval.metrics.words import Choice, check_choice, words_of
from unlearn.data.example import Example

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

    `gibberish`: hub id or folder of a classifier that tells whether the answers of the forget and the retain
    set are language still; madhurjindal/autonlp-Gibberish-Detector-492513457 gives OpenUnlearning's fluency.

    `words`: the tokenizer of ROUGE (`eval.metrics.words`).

    `mia`: attacks of forget against holdout, with the share `min_k` of the tokens for two of them; the one by
    gradient norm, which costs a backward pass of both sets, only with `gradients`.
    """

    max_new_tokens: int = 200
    truth_ratio: TruthRatioForm = "geometric"
    generation: bool = True
    words: Choice = "auto"
    gibberish: str | None = None
    mia: bool = True
    gradients: bool = True
    min_k: float = 0.4

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: give at least 1, or generation=false")
        check_choice(self.words)
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
    words: dict[str, str] = {}
    for name, examples in _scored(sets, options).items():
        chosen = None
        if options.generation and name != "holdout":
            true = [e.answer for e in examples]
            chosen = words_of(true, options.words)
            words[name] = chosen.name
            problems += without_words(f"{name}/generation", examples, true, chosen)
        found[name] = set_scores(read, name, examples, options.truth_ratio, chosen)
        metrics |= found[name].metrics
    if options.gibberish is not None:
        more, trouble = _fluency(found, options.gibberish)
        metrics, problems = metrics | more, problems + trouble
    if isinstance(retain, PublishedLog) and "forget" in found:
        retain, trouble = _of_same_split(retain, sets["forget"])
        problems += trouble
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
    return Result(metrics, _rows(sets, found, columns), problems, words)


def _scored(sets: Sets, options: Options) -> Sets:
    """The sets that the model is asked about: a holdout set serves the attacks and may be empty."""
    return {name: own for name, own in sets.items() if name != "holdout" or (options.mia and len(own))}


def _fluency(found: dict[str, SetScores], detector: str) -> tuple[dict[str, float], list[str]]:
    """`tofu/<set>/fluency`, whose values go to the set's columns; NaN if there is no such detector."""
    written = {name: found[name].texts for name in TAUGHT if name in found}
    given = {name: texts for name, texts in written.items() if texts is not None}
    if not given:
        return {}, []
    metrics: dict[str, float] = {}
    try:
        classify = gibberish_detector(detector)
    except DetectorError as error:
        classify, problems = None, [f"{', '.join(f'tofu/{name}/fluency' for name in given)}: {error}"]
    else:
        problems = []
    for name, texts in given.items():
        values = np.full(len(texts), np.nan)
        there = np.array([text is not None for text in texts], dtype=bool)
        if classify is not None:
            values[there] = fluency([text for text in texts if text is not None], classify)
        found[name].columns["fluency"] = values
        metrics |= aggregate(f"tofu/{name}/fluency", values)
    return metrics, problems


def _of_same_split(log: PublishedLog, examples: Sequence[Example]) -> tuple[PublishedLog | None, list[str]]:
    """The log if its forget set can be this one, and what speaks against that.

    Logs have no ids. Their true answers tell where they hold them; the original ones are of the first 300
    examples.
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
    """Without spaces, which tokenizers add and lose."""
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
