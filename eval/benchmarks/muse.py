"""MUSE (arXiv 2407.06460): memory of a corpus verbatim, of its content, and of membership in it.

- `muse/forget/verbmem`: ROUGE-L F1 of the greedy continuation of a passage against as many tokens of the true
  one.
- `muse/forget/knowmem`, `muse/retain/knowmem`: ROUGE-L F1 of short answers to questions, after a few
  examples.
- `muse/mia/min_k_auc`: how well Min-K% separates forget and holdout texts (`eval.metrics.mia`); 1:
  remembered.
- `muse/privleak`: that AUC relative to the retain model's; best 0, −100: all remembered, above 0:
  over-unlearned.

ROUGE is from 0 to 1, in the paper in percent. On `forget` lower is forgetting.

Differences from the released code: prompts end in `Answer:` without a space, which most tokenizers make part
of the answer's first token; leading white space of an answer is dropped before its end is searched; texts are
cut at `dataset.max_length`, and the end token is not part of Min-K%. No metric uses the dataset's
`privleak_retain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from eval.benchmark import BenchmarkError, Better, Metric, Result, Role, Sets, question_of, without_words
from eval.collection.records import GenerationRecords, Records
from eval.collection.requests import Answer, Generation, Likelihood, Prompt, Request
from eval.judgement.aspects import closeness_to_retain, of_targets, one_minus, privleak_closeness
from eval.metrics import mia
from eval.metrics.likelihood import aggregate, without_end
from eval.metrics.text import cut_at, rouge
from eval.metrics.words import Choice, words_of
from unlearn.config import Section
from unlearn.data.example import Example

STOPS = ("\n\n", "\nQuestion", "Question:")
"""Ends of an answer to a knowledge question."""
SETS: Mapping[str, Role] = {
    "verbmem": "forget",
    "knowmem_forget": "forget",
    "knowmem_retain": "retain",
    "privleak_forget": "forget",
    "privleak_holdout": "holdout",
}
READS = ("knowmem_forget_icl", "knowmem_retain_icl")
METRICS = {
    "muse/privleak": Metric(
        "AUC of Min-K% against the retrained model's, in percent; −100: all remembered", Better.ZERO,
        unit="percent", level=1, judged=("privacy", privleak_closeness), optional=True,
        replaced_by="mia/min_k_auc",
    ),
    "muse/forget/verbmem": Metric(
        "ROUGE-L F1 of a passage's continuation", Better.FORGOTTEN_IF_LOWER, level=2,
        judged=("forget_efficacy", one_minus), views=("forgetting", "card", "changed"),
    ),
    "muse/forget/knowmem": Metric(
        "ROUGE-L F1 of short answers about the corpus", Better.FORGOTTEN_IF_LOWER, level=2,
        judged=("forget_efficacy", one_minus), views=("forgetting", "card"),
    ),
    "muse/retain/knowmem": Metric(
        "ROUGE-L F1 of short answers about what is to be kept", Better.HIGHER, level=2,
        judged=("utility", of_targets), views=("utility", "card"),
    ),
    "muse/mia/min_k_auc": Metric(
        "AUC of Min-K%, forget against holdout texts", Better.LIKE_RETAIN, level=3,
        judged=("privacy", closeness_to_retain), optional=True,
    ),
}  # fmt: skip
RETRAINED = {"news": 1 - 0.4772, "books": 1 - 0.5393}
"""AUCs of Min-40% of the published retrained models, 1: remembered; the released code has 1 − AUC."""
_RETRAINED_K = 0.4

_KNOWMEM = {"knowmem_forget": "muse/forget/knowmem", "knowmem_retain": "muse/retain/knowmem"}
_PRIVLEAK = ("privleak_forget", "privleak_holdout")


class Options(Section):
    """Options of the benchmark.

    - `verbmem_tokens`, `knowmem_tokens`: longest answers; `verbmem_tokens` is also compared of the true
      passage.
    - `icl`: the number of examples before a question; None: all that the data has.
    - `stemmer`: the released code has none, so it is off; OpenUnlearning's figures use one.
    - `words`: the tokenizer of ROUGE (`eval.metrics.words`).
    - `k`: share of the tokens in Min-K%.
    - `retain_auc`: what `muse/privleak` compares with. `news` or `books` are the published retrained models;
      a number is an AUC, 1: remembered. None is the AUC of the run's retain model, without which there is no
      privleak: no model has ½ by definition, and the published ones belong to one model and corpus.
    """

    verbmem_tokens: int = 128
    knowmem_tokens: int = 32
    icl: int | None = None
    stemmer: bool = False
    words: Choice = "auto"
    k: float = 0.4
    retain_auc: Literal["news", "books"] | float | None = None

    @model_validator(mode="after")
    def _fit(self) -> Options:
        if self.icl is not None and self.icl < 0:
            raise ValueError(f"icl={self.icl}: a number of examples is 0 or more")
        if not 0 < self.k <= 1:
            raise ValueError(f"k={self.k}: the share of tokens is above 0 and at most 1")
        own = self.retain_auc
        known = own in RETRAINED if isinstance(own, str) else own is None or 0 <= own <= 1
        if not known:
            raise ValueError(f"retain_auc={own}: give news, books or an AUC between 0 and 1")
        if isinstance(own, str) and self.k != _RETRAINED_K:
            raise ValueError(f"retain_auc={own} is of k={_RETRAINED_K}, not of k={self.k}; give the AUC")
        return self


def requests(sets: Sets, options: Options) -> list[Request]:
    """Return `verbmem`, `knowmem_forget`, `knowmem_retain`, and the `privleak` sets if there are both."""
    wanted: list[Request] = []
    if "verbmem" in sets:
        wanted.append(Generation("verbmem", _passages(sets["verbmem"]), options.verbmem_tokens, raw=True))
    for name in _KNOWMEM:
        if name in sets:
            wanted.append(Generation(name, _questions(name, sets, options), options.knowmem_tokens, raw=True))
    if all(name in sets for name in _PRIVLEAK):
        wanted += [Likelihood(name, _texts(sets[name])) for name in _PRIVLEAK]
    return wanted


def score(read: Records, retain: object, sets: Sets, options: Options) -> Result:
    """Return metrics and rows of all sets, but no rows of the few-shot examples."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    words = {
        name: words_of((e.answer for e in sets[name]), options.words, stemmer=options.stemmer)
        for name in ("verbmem", *_KNOWMEM)
        if name in sets
    }
    named: dict[str, str] = {name: chosen.name for name, chosen in words.items()}
    problems: list[str] = []
    if "verbmem" in sets:
        generations = read.generation("verbmem").select(_passages(sets["verbmem"]))
        values = rouge(generations.truth, generations.text, words["verbmem"]).rougeL_f1
        problems += without_words("verbmem", sets["verbmem"], generations.truth, words["verbmem"])
        metrics |= aggregate("muse/forget/verbmem", values)
        rows += _generated("verbmem", sets["verbmem"], generations, generations.text, values)
    for name, key in _KNOWMEM.items():
        if name in sets:
            generations = read.generation(name).select(_questions(name, sets, options))
            answers = [None if text is None else cut_at([text], STOPS)[0] for text in generations.text]
            true = [example.answer for example in sets[name]]
            values = rouge(true, answers, words[name]).rougeL_f1
            problems += without_words(name, sets[name], true, words[name])
            metrics |= aggregate(key, values)
            rows += _generated(name, sets[name], generations, answers, values)
    if not all(name in sets for name in _PRIVLEAK):
        return Result(metrics, rows, problems, named)
    scores = {name: _min_k(read, name, sets[name], options) for name in _PRIVLEAK}
    for name, values in scores.items():
        pairs = zip(sets[name], values.tolist(), strict=True)
        rows += [_row(name, example) | {"min_k": value} for example, value in pairs]
    auc = mia.auc(*scores.values())
    reference, trouble = _retain_auc(retain, sets, options)
    metrics |= {"muse/mia/min_k_auc": auc, "muse/privleak": mia.privleak(auc, reference)}
    return Result(metrics, rows, problems + trouble, named)


def _retain_auc(retain: object, sets: Sets, options: Options) -> tuple[float, list[str]]:
    """Return the AUC that privleak compares with, or NaN and the reason."""
    if isinstance(options.retain_auc, str):
        return RETRAINED[options.retain_auc], []
    if options.retain_auc is not None:
        return options.retain_auc, []
    if isinstance(retain, Records):
        return mia.auc(*(_min_k(retain, name, sets[name], options) for name in _PRIVLEAK)), []
    problem = (
        "muse/privleak compares with the retain model's AUC, and there is none: give a retain model, or the "
        "benchmark's option retain_auc (news and books are the published ones)"
    )
    return math.nan, [problem]


def _passages(examples: Sequence[Example]) -> tuple[Prompt, ...]:
    return tuple(Prompt(e.id, question_of(e, "muse"), truth=e.answer) for e in examples)


def _questions(name: str, sets: Sets, options: Options) -> tuple[Prompt, ...]:
    shown = list(sets.get(f"{name}_icl", ()))[: options.icl]
    if not shown and options.icl != 0:
        raise BenchmarkError(
            f"muse: {name} has no few-shot examples: give the set {name}_icl, or the option icl=0"
        )
    before = "".join(f"Question: {question_of(e, 'muse')}\nAnswer: {e.answer}\n\n" for e in shown)
    return tuple(Prompt(e.id, f"{before}Question: {question_of(e, 'muse')}\nAnswer:") for e in sets[name])


def _texts(examples: Sequence[Example]) -> tuple[Answer, ...]:
    return tuple(Answer(e.id, 0, None, e.answer) for e in examples)


def _min_k(read: Records, name: str, examples: Sequence[Example], options: Options) -> np.ndarray:
    records = read.likelihood(name).select(_texts(examples))
    return mia.min_k(without_end(records.logp, records.ended), options.k)


def _generated(
    name: str, examples: Sequence[Example], generations: GenerationRecords, answers: Sequence[str | None],
    values: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        _row(name, example)
        | {"question": example.question, "answer": truth or example.answer, "generation": text}
        | {"rougeL_f1": float(value)}
        for example, truth, text, value in zip(examples, generations.truth, answers, values, strict=True)
    ]


def _row(name: str, example: Example) -> dict[str, Any]:
    # All rows have the same columns: a table takes them from the first.
    blank = {"question": None, "answer": None, "generation": None, "rougeL_f1": math.nan, "min_k": math.nan}
    return {"set": name, "id": example.id, **blank}
