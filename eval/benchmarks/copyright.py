"""Measure whether a model still recites a copyrighted text: FLAT's benchmark of a book (arXiv 2410.11143).

The model continues the beginning of a passage greedily. Per set: `bleu` (sacrebleu's of each passage,
averaged, 0 to 100) and `rougeL_recall` (0 to 1) against the true continuation, and its `perplexity`: exp of
its NLL per token over all passages. On `forget`, lower overlap and higher perplexity are forgetting.

`copyright/forget_quality_gap` is |ΔBLEU| + |ΔROUGE-L recall| to the retain model on the forget set, which is
the model before it was trained on the text; the best value is 0. Perplexity and accuracy on other data come
from the benchmark `general`, which `eval=copyright` includes.

FLAT's released evaluation drops the first generated token and keeps `### Answer: ` at the beginning of the
true answer, which changes both overlaps by a constant; this one does neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from eval.benchmark import Better, Metric, Result, Role, Sets, without_words
from eval.collection.records import Records
from eval.collection.requests import Answer, Generation, Likelihood, Prompt, Request
from eval.judgement.aspects import of_targets, one_minus, one_minus_percent
from eval.metrics.likelihood import aggregate, mean, mean_nll, perplexity, without_end
from eval.metrics.text import bleu, rouge
from eval.metrics.words import Choice, Words, words_of
from unlearn.config import Section
from unlearn.data.example import Example

SETS: Mapping[str, Role] = {"forget_eval": "forget", "retain_eval": "retain"}

METRICS = {
    "copyright/forget_quality_gap": Metric(
        "|ΔBLEU| + |ΔROUGE-L recall| to the retain model", Better.ZERO, unit="points", level=1
    ),
    "copyright/forget/rougeL_recall": Metric(
        "ROUGE-L recall of a passage's continuation", Better.FORGOTTEN_IF_LOWER, level=2,
        judged=("forget_efficacy", one_minus), views=("forgetting", "card", "changed"),
    ),
    "copyright/forget/bleu": Metric(
        "BLEU of a passage's continuation", Better.FORGOTTEN_IF_LOWER, unit="0 to 100", level=2,
        judged=("forget_efficacy", one_minus_percent),
    ),
    "copyright/forget/perplexity": Metric(
        "exp of the NLL per token of what follows", Better.FORGOTTEN_IF_HIGHER, unit="from 1"
    ),
    "copyright/retain/rougeL_recall": Metric(
        "ROUGE-L recall of a passage's continuation", Better.HIGHER, level=2, judged=("utility", of_targets),
        views=("utility", "card"),
    ),
    "copyright/retain/bleu": Metric(
        "BLEU of a passage's continuation", Better.HIGHER, unit="0 to 100", level=2
    ),
    "copyright/retain/perplexity": Metric(
        "exp of the NLL per token of what follows", Better.LOWER, unit="from 1"
    ),
}  # fmt: skip


class Options(Section):
    """Options of the benchmark.

    - `max_new_tokens`: FLAT stops at 600 tokens, 200 of them the prompt.
    - `raw`: the beginning of the passage is the whole prompt. The default is the model's prompt format, as in
      training.
    - `stemmer`: compare stems of words in ROUGE.
    - `gap`: the scale of the forget quality gap. `percent` adds both in percent. `mixed` adds BLEU from 0 to
      100 to ROUGE from 0 to 1, so that BLEU dominates. FLAT does not say which it uses; its published gap of
      2.73 for a collapsed model is above 2 and far below any ROUGE in percent.
    - `effective_order`: score a completion of fewer than four tokens by the n-grams it has; FLAT's code gives
      it a BLEU of 0.
    - `words`: the tokenizer of ROUGE (`eval.metrics.words`).
    """

    max_new_tokens: int = 400
    raw: bool = False
    stemmer: bool = True
    gap: Literal["percent", "mixed"] = "percent"
    effective_order: bool = True
    words: Choice = "auto"


def requests(sets: Sets, options: Options) -> list[Request]:
    """Return `<set>/continuation` of passages with a question, and `<set>/answer` of all passages."""
    wanted: list[Request] = []
    for name, examples in sets.items():
        if prompts := _prompts(examples):
            wanted.append(
                Generation(f"{name}/continuation", prompts, options.max_new_tokens, raw=options.raw)
            )
        wanted.append(Likelihood(f"{name}/answer", _answers(examples), raw=options.raw))
    return wanted


def score(read: Records, retain: object, sets: Sets, options: Options) -> Result:
    """Return the metrics of each set, and the gap if there are records of the retain model."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    words: dict[str, str] = {}
    for name, examples in sets.items():
        true = [e.answer for e in examples]
        chosen = words_of(true, options.words, stemmer=options.stemmer)
        overlap, texts = _overlap(read, name, examples, options, chosen)
        if texts:
            words[name] = chosen.name
            problems += without_words(f"{name}/continuation", examples, true, chosen)
            asked = np.array([example.question is not None for example in examples])
            for metric, scores in overlap.items():
                metrics |= aggregate(f"copyright/{name}/{metric}", scores[asked])
        likelihood = read.likelihood(f"{name}/answer").select(_answers(examples))
        # A passage is cut from a text that continues, so it has no end to predict.
        tokens = without_end(likelihood.logp, likelihood.ended)
        metrics[f"copyright/{name}/perplexity"] = perplexity(tokens)
        values = {**overlap, "nll": mean_nll(tokens)}
        generated = iter(texts)
        for i, example in enumerate(examples):
            row = {"set": name, "id": example.id, "question": example.question, "answer": example.answer}
            row["generation"] = None if example.question is None else next(generated)
            rows.append(row | {metric: float(scores[i]) for metric, scores in values.items()})
        if name == "forget" and texts and isinstance(retain, Records):
            theirs, _ = _overlap(retain, name, examples, options, chosen)
            gap = {metric: abs(mean(overlap[metric]) - mean(theirs[metric])) for metric in overlap}
            scale = 100 if options.gap == "percent" else 1
            metrics["copyright/forget_quality_gap"] = gap["bleu"] + scale * gap["rougeL_recall"]
    return Result(metrics, rows, problems, words)


def _overlap(
    read: Records, name: str, examples: Sequence[Example], options: Options, words: Words
) -> tuple[dict[str, np.ndarray], Sequence[str | None]]:
    """Return BLEU and ROUGE-L recall, each [E], NaN where nothing was generated, and the generated texts."""
    prompts = _prompts(examples)
    texts = read.generation(f"{name}/continuation").select(prompts).text if prompts else []
    generated = iter(texts)
    mine = [None if e.question is None else next(generated) for e in examples]
    answers = [e.answer for e in examples]
    return {
        "bleu": bleu(answers, mine, effective_order=options.effective_order),
        "rougeL_recall": rouge(answers, mine, words).rougeL_recall,
    }, texts


def _prompts(examples: Sequence[Example]) -> tuple[Prompt, ...]:
    return tuple(Prompt(e.id, e.question) for e in examples if e.question is not None)


def _answers(examples: Sequence[Example]) -> tuple[Answer, ...]:
    return tuple(Answer(e.id, 0, e.question, e.answer) for e in examples)
