"""R-TOFU (arXiv 2505.15214): is a fact forgotten in the answer, and in the reasoning before it?

The greedy generation is split at `</think>` into trace and answer; an answer that does not come is empty.

- `rtofu/<set>/answer_recall`: ROUGE-L recall (with stemmer) of the answer.
- `rtofu/<set>/token_entropy`: entropy of the answer's words relative to the largest one of as many; low where
  a model repeats itself.
- `rtofu/forget/trace_recall`: for each sentence of the true trace its best match in the generated trace by
  ROUGE-L recall, mean.
- `rtofu/forget/short_recall`: that of the answer where another text takes the place of the trace
  (`Options.thought`), by default nothing.

`rtofu/forget_efficacy` is the harmonic mean of 1 − x of the forget set's answer metrics without the entropy,
`rtofu/model_utility` that of the metrics of retain, real_authors and world_facts. The paper's two metrics of
other models, cosine of sentence embeddings and entailment, are not part of them: the first is 1 − ROUGE-L
recall here, and the second a mean of six and not of twelve values.

Another difference from the released code: entropy is of words and not of the model's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.benchmark import BenchmarkError, Better, Metric, Result, Role, Sets, question_of, without_words
from eval.collection.records import Records
from eval.collection.requests import Generation, Prompt, Request
from eval.judgement.aspects import of_targets, one_minus
from eval.metrics.fluency import token_entropy
from eval.metrics.likelihood import aggregate, harmonic_mean
from eval.metrics.reasoning import MARK, answer_of, trace_of, trace_recall
from eval.metrics.text import rouge
from eval.metrics.words import Choice, Words, words_of
from unlearn.config import Section
from unlearn.data.example import Example

SETS: Mapping[str, Role] = {
    "forget_eval": "forget",
    "retain_eval": "retain",
    "real_authors": "utility",
    "world_facts": "utility",
}
_UTILITY = ("retain", "real_authors", "world_facts")
_KEPT = {"answer_recall": "ROUGE-L recall of the answer", "token_entropy": "entropy of the answer's words"}
METRICS = {
    "rtofu/forget_efficacy": Metric("how little the answers give away", Better.FORGOTTEN_IF_HIGHER, level=1),
    "rtofu/model_utility": Metric(
        "harmonic mean of recall and entropy of three sets", Better.HIGHER, level=1,
        judged=("utility", of_targets), views=("utility", "card"), optional=True,
    ),
    "rtofu/forget/answer_recall": Metric(
        "ROUGE-L recall of the answer", Better.FORGOTTEN_IF_LOWER, level=2,
        judged=("forget_efficacy", one_minus), views=("forgetting", "card", "changed"),
    ),
    "rtofu/forget/trace_recall": Metric(
        "best ROUGE-L recall of each sentence of the trace", Better.FORGOTTEN_IF_LOWER, level=2,
        judged=("forget_efficacy", one_minus), views=("card",), optional=True,
    ),
    "rtofu/forget/short_recall": Metric(
        "ROUGE-L recall of the answer without thinking", Better.FORGOTTEN_IF_LOWER, level=3
    ),
    "rtofu/forget/token_entropy": Metric("entropy of the answer's words", Better.HIGHER),
    **{
        f"rtofu/{name}/{key}": Metric(text, Better.HIGHER)
        for name in _UTILITY
        for key, text in _KEPT.items()
    },
}  # fmt: skip


class Options(Section):
    """Options of the benchmark.

    - `max_new_tokens`: of trace and answer together; the paper's code has 1024 with the prompt.
    - `thought`: the text in the place of the trace in a second decoding of the forget set; the paper has none
      and one line. null: no second decoding.
    - `words`: the tokenizer of ROUGE (`eval.metrics.words`).
    """

    max_new_tokens: int = 1024
    thought: str | None = ""
    words: Choice = "auto"


def requests(sets: Sets, options: Options) -> list[Request]:
    """Return `<set>/generation`, and `forget/short`."""
    wanted: list[Request] = []
    for name, examples in sets.items():
        if name not in ("forget", *_UTILITY):
            raise BenchmarkError(f"rtofu scores no set {name!r}; it has: {', '.join(('forget', *_UTILITY))}")
        if examples:
            wanted.append(Generation(f"{name}/generation", _prompts(examples), options.max_new_tokens))
            if name == "forget" and options.thought is not None:
                prompts = _prompts(examples, _opening(options.thought))
                wanted.append(Generation("forget/short", prompts, options.max_new_tokens))
    return wanted


def score(read: Records, retain: object, sets: Sets, options: Options) -> Result:
    """Return metrics by set, the two harmonic means of what is there, and a row per example."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    words: dict[str, str] = {}
    for name, examples in sets.items():
        if not examples:
            continue
        true = [_true_answer(example) for example in examples]
        chosen = words_of(true, options.words)
        words[name] = chosen.name
        problems += without_words(f"rtofu/{name}", examples, true, chosen)
        texts = read.generation(f"{name}/generation").select(_prompts(examples)).text
        columns = _columns(examples, true, texts, chosen)
        if name == "forget" and options.thought is not None:
            prompts = _prompts(examples, _opening(options.thought))
            short = read.generation("forget/short").select(prompts).text
            columns["short_recall"] = rouge(true, short, chosen).rougeL_recall
        if name != "forget":
            del columns["trace_recall"]
        for key, values in columns.items():
            metrics |= aggregate(f"rtofu/{name}/{key}", values)
        for i, example in enumerate(examples):
            row: dict[str, Any] = {
                "set": name,
                "id": example.id,
                "question": example.question,
                "answer": true[i],
            }
            row |= {"generation": texts[i], "trace_recall": np.nan, "short_recall": np.nan}
            rows.append(row | {key: float(values[i]) for key, values in columns.items()})
    if sets.get("forget"):
        metrics["rtofu/forget_efficacy"] = harmonic_mean(
            np.array([1 - metrics["rtofu/forget/answer_recall"]])
        )
    if all(sets.get(name) for name in _UTILITY):
        kept = [metrics[f"rtofu/{name}/{key}"] for name in _UTILITY for key in _KEPT]
        metrics["rtofu/model_utility"] = harmonic_mean(np.array(kept))
    return Result(metrics, rows, problems, words)


def _columns(
    examples: Sequence[Example], true: Sequence[str], texts: Sequence[str | None], words: Words
) -> dict[str, np.ndarray]:
    answers = [None if text is None else answer_of(text) for text in texts]
    plain = Words(words.name, stemmer=False)
    traces = [
        np.nan
        if text is None or MARK not in e.answer
        else trace_recall(trace_of(e.answer), trace_of(text), words)
        for e, text in zip(examples, texts, strict=True)
    ]
    return {
        "answer_recall": rouge(true, answers, words).rougeL_recall,
        "token_entropy": token_entropy([None if a is None else plain.tokenize(a) for a in answers]),
        "trace_recall": np.array(traces, dtype=np.float64),
    }


def _true_answer(example: Example) -> str:
    return answer_of(example.answer) if MARK in example.answer else example.answer


def _opening(thought: str) -> str:
    return f"{thought}\n{MARK}\n\n"


def _prompts(examples: Sequence[Example], opening: str = "") -> tuple[Prompt, ...]:
    return tuple(Prompt(e.id, question_of(e, "rtofu"), opening) for e in examples)
