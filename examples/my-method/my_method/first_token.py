"""A benchmark: whether the first token of the answer is the model's first choice."""

from typing import Any

import numpy as np

from eval.benchmark import Better, Metric, Result, Role, Sets
from eval.collection.records import Records
from eval.collection.requests import Answer, Likelihood, Request
from eval.metrics.likelihood import aggregate
from unlearn.config import Section

SETS: dict[str, Role] = {"forget": "forget", "retain": "retain"}
_TEXT = "share of answers whose first token is the most likely one"
METRICS = {
    "first_token/forget/accuracy": Metric(
        _TEXT, Better.FORGOTTEN_IF_LOWER, level=1, views=("forgetting", "sweep")
    ),
    "first_token/retain/accuracy": Metric(_TEXT, Better.HIGHER, level=1, views=("utility", "sweep")),
}


class Options(Section):
    """This benchmark has no options."""


def requests(sets: Sets, options: Options) -> list[Request]:
    """Ask for the likelihood of each answer, which tells the first choices too."""
    return [Likelihood(f"{name}/answer", _answers(examples)) for name, examples in sets.items()]


def score(read: Records, retain: object, sets: Sets, options: Options) -> Result:
    """Return the share for each set, and a row for each example."""
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name, examples in sets.items():
        correct = read.likelihood(f"{name}/answer").select(_answers(examples)).correct
        values = np.array([float(row[0]) if len(row) else np.nan for row in correct])
        metrics |= aggregate(f"first_token/{name}/accuracy", values)
        rows += [
            {"set": name, "id": e.id, "accuracy": float(v)} for e, v in zip(examples, values, strict=True)
        ]
    return Result(metrics, rows)


def _answers(examples: Any) -> tuple[Answer, ...]:
    return tuple(Answer(e.id, 0, e.question, e.answer) for e in examples)
