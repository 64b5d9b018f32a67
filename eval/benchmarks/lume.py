"""LUME (arXiv 2502.15097) and SemEval-2025 Task 4: complete documents, and answer questions about them.

There are three tasks (stories, invented biographies, real ones). Each set has two groups per task:
`regurgitation` is ROUGE-L recall (with stemmer) of the greedy completion, `knowledge` the share of greedy
answers that equal the true one up to case and surrounding space. Prompts are the inputs unchanged. On
`forget` lower is forgetting.

The task aggregate is the harmonic mean of the twelve scores, those of `forget` as 1 − x; it needs both sets.
The membership score 1 − 2·|AUC − ½| needs `member` and `nonmember`. The final score is the mean of these two
and the accuracy on MMLU, which another evaluation measures (`mmlu/accuracy`) and `Options.mmlu` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import model_validator

from eval.benchmark import BenchmarkError, Better, Metric, Result, Role, Sets, without_words
from eval.collection.records import Records
from eval.collection.requests import Answer, Generation, Likelihood, Prompt, Request
from eval.judgement.aspects import closeness_to_retain, of_targets, one_minus
from eval.metrics.likelihood import aggregate, harmonic_mean, mean_nll, without_end
from eval.metrics.mia import auc
from eval.metrics.text import exact_match, rouge
from eval.metrics.words import Choice, Words, words_of
from unlearn.config import Section
from unlearn.data.example import Example

# The training documents have the role of the forget set.
SETS: dict[str, Role] = {
    "forget_eval": "forget",
    "retain_eval": "retain",
    "member": "forget",
    "nonmember": "holdout",
}
GROUPS = tuple(
    f"{task}/{kind}" for task in ("task1", "task2", "task3") for kind in ("regurgitation", "knowledge")
)
METRICS = {
    "lume/final": Metric("mean of task aggregate, membership score and MMLU", Better.HIGHER, level=1),
    "lume/task_aggregate": Metric("harmonic mean of the twelve task scores", Better.HIGHER, level=1),
    "lume/mia_score": Metric("1 − 2·|AUC − ½| of the membership attack", Better.HIGHER, level=1),
    "lume/forget/regurgitation": Metric(
        "ROUGE-L recall of completed documents", Better.FORGOTTEN_IF_LOWER, level=2,
        views=("forgetting", "card", "changed"),
    ),
    "lume/forget/knowledge": Metric(
        "share of questions answered exactly", Better.FORGOTTEN_IF_LOWER, level=2, views=("card",)
    ),
    **{
        f"lume/forget/{group.replace('/', '_')}": Metric(
            "the same of one task", Better.FORGOTTEN_IF_LOWER, optional=True,
            judged=("forget_efficacy", one_minus),
        )
        for group in GROUPS
    },
    "lume/retain/regurgitation": Metric(
        "ROUGE-L recall of completed documents", Better.HIGHER, level=2, views=("utility", "card")
    ),
    "lume/retain/knowledge": Metric(
        "share of questions answered exactly", Better.HIGHER, level=2, views=("card",)
    ),
    **{
        f"lume/retain/{group.replace('/', '_')}": Metric(
            "the same of one task", Better.HIGHER, optional=True, judged=("utility", of_targets)
        )
        for group in GROUPS
    },
    "lume/mia/loss_auc": Metric(
        "AUC of the loss, members against others", Better.LIKE_RETAIN,
        judged=("privacy", closeness_to_retain), optional=True,
    ),
}  # fmt: skip
_SCORED, _ATTACK = ("forget", "retain"), ("member", "nonmember")
_METRICS = {"regurgitation": "rougeL_recall", "knowledge": "exact_match"}


class Options(Section):
    """Options of the benchmark.

    - `max_new_tokens`, `knowledge_tokens`: longest completions and answers. The official script has 256 for
      both. Only a whole answer counts, so any limit above the longest true answer (about thirty tokens) finds
      the same matches, and costs less where a model does not stop.
    - `mmlu`: an accuracy between 0 and 1; without it there is no final score.
    - `words`: the tokenizer of ROUGE (`eval.metrics.words`).
    """

    max_new_tokens: int = 256
    knowledge_tokens: int = 128
    mmlu: float | None = None
    words: Choice = "auto"

    @model_validator(mode="after")
    def _fit(self) -> Options:
        if self.mmlu is not None and not 0 <= self.mmlu <= 1:
            raise ValueError(f"mmlu={self.mmlu}: an accuracy is between 0 and 1")
        return self


def requests(sets: Sets, options: Options) -> list[Request]:
    """Return `<set>/regurgitation`, `<set>/knowledge`, and `<set>/document` for the attack."""
    for name in sets:
        if name not in (*_SCORED, *_ATTACK):
            raise BenchmarkError(f"lume scores no set {name!r}; it has: {', '.join((*_SCORED, *_ATTACK))}")
    wanted: list[Request] = []
    limits = {"regurgitation": options.max_new_tokens, "knowledge": options.knowledge_tokens}
    for name in _SCORED:
        for kind, limit in limits.items():
            if asked := _of_kind(sets.get(name, ()), kind):
                wanted.append(Generation(f"{name}/{kind}", _prompts(asked), limit, raw=True))
    if _has(sets, _ATTACK):
        wanted += [Likelihood(f"{name}/document", _documents(sets[name])) for name in _ATTACK]
    return wanted


def score(read: Records, retain: object, sets: Sets, options: Options) -> Result:
    """Return metrics by task, and the aggregates of which all parts exist; the retain model is not used."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    words: dict[str, str] = {}
    for name in _SCORED:
        if name in sets:
            completed = _of_kind(sets[name], "regurgitation")
            true = [e.answer for e in completed]
            chosen = words_of(true, options.words)
            words |= {name: chosen.name} if completed else {}
            problems += without_words(f"{name}/regurgitation", completed, true, chosen)
            values, texts = _values(read, name, sets[name], chosen)
            metrics |= _set_metrics(name, sets[name], values)
            for i, example in enumerate(sets[name]):
                rows.append(_row(name, example, texts[i]) | {_metric(example): float(values[i])})
    if _has(sets, _SCORED):
        terms = [_term(metrics, name, group) for name in _SCORED for group in GROUPS]
        metrics["lume/task_aggregate"] = harmonic_mean(np.array(terms))
        problems += _lacking(sets)
    if _has(sets, _ATTACK):
        nll = {name: _document_nll(read, name, sets[name]) for name in _ATTACK}
        for name, values in nll.items():
            rows += [_row(name, e, None) | {"nll": float(v)} for e, v in zip(sets[name], values, strict=True)]
        metrics["lume/mia/loss_auc"] = auc(nll["member"], nll["nonmember"])
        metrics["lume/mia_score"] = 1 - 2 * abs(metrics["lume/mia/loss_auc"] - 0.5)
    parts = [metrics.get(key) for key in ("lume/task_aggregate", "lume/mia_score")]
    if options.mmlu is not None and None not in parts:
        metrics["lume/final"] = float(np.mean([*parts, options.mmlu]))
    return Result(metrics, rows, problems, words)


def _values(
    read: Records, name: str, examples: Sequence[Example], words: Words
) -> tuple[np.ndarray, list[str | None]]:
    """Return each example's score by the metric of its kind, NaN where there is no text, and the texts."""
    by_id: dict[str, tuple[float, str | None]] = {}
    for kind in _METRICS:
        if not (asked := _of_kind(examples, kind)):
            continue
        texts = read.generation(f"{name}/{kind}").select(_prompts(asked)).text
        true = [e.answer for e in asked]
        values = (
            rouge(true, texts, words).rougeL_recall if kind == "regurgitation" else exact_match(true, texts)
        )
        by_id |= {e.id: (float(v), t) for e, v, t in zip(asked, values, texts, strict=True)}
    return np.array([by_id[e.id][0] for e in examples]), [by_id[e.id][1] for e in examples]


def _set_metrics(name: str, examples: Sequence[Example], values: np.ndarray) -> dict[str, float]:
    """Return the metrics of each group, and of each kind over all tasks."""
    metrics: dict[str, float] = {}
    for wanted in (*GROUPS, *_METRICS):
        where = np.array([wanted in (_group(e), _kind(e)) for e in examples], dtype=bool)
        if where.any():
            metrics |= aggregate(f"lume/{name}/{wanted.replace('/', '_')}", values[where])
    return metrics


def _term(metrics: dict[str, float], name: str, group: str) -> float:
    value = metrics.get(f"lume/{name}/{group.replace('/', '_')}", np.nan)
    return 1 - value if name == "forget" else value


def _lacking(sets: Sets) -> list[str]:
    lacking = [f"{n}/{g}" for n in _SCORED for g in GROUPS if g not in {_group(e) for e in sets[n]}]
    if not lacking:
        return []
    return [
        f"lume/task_aggregate: the mean is of twelve terms, and no example is of {', '.join(lacking)}; "
        "evaluate whole splits"
    ]


def _document_nll(read: Records, name: str, examples: Sequence[Example]) -> np.ndarray:
    records = read.likelihood(f"{name}/document").select(_documents(examples))
    # The official loss is of the document's own tokens, without an end token.
    return mean_nll(without_end(records.logp, records.ended))


def _row(name: str, example: Example, text: str | None) -> dict[str, Any]:
    row = {"set": name, "id": example.id, "group": example.group, "question": example.question}
    row |= {"answer": example.answer, "generation": text}
    return row | dict.fromkeys((*_METRICS.values(), "nll"), np.nan)


def _of_kind(examples: Sequence[Example], kind: str) -> list[Example]:
    return [example for example in examples if _kind(example) == kind]


def _group(example: Example) -> str:
    if example.group not in GROUPS or example.question is None:
        raise BenchmarkError(
            f"lume: example {example.id} is of group {example.group}; this benchmark scores inputs of the "
            f"groups {', '.join(GROUPS)}: choose dataset=lume, or another benchmark"
        )
    return example.group


def _kind(example: Example) -> str:
    return _group(example).split("/")[1]


def _metric(example: Example) -> str:
    return _METRICS[_kind(example)]


def _prompts(examples: Sequence[Example]) -> tuple[Prompt, ...]:
    return tuple(Prompt(e.id, e.question or "") for e in examples)


def _documents(examples: Sequence[Example]) -> tuple[Answer, ...]:
    return tuple(Answer(e.id, 0, None, e.answer) for e in examples)


def _has(sets: Sets, names: Sequence[str]) -> bool:
    return all(sets.get(name) for name in names)
