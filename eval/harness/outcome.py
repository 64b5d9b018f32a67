"""What comes out of the harness, in this project's terms: numbers by task and metric, a row per example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

_QUESTION = 500  # characters kept of a prompt's end; few-shot examples come before it


@dataclass(frozen=True)
class Outcome:
    """`metrics` by task or group and metric; `rows` of all tasks with the same columns, NaN where unmeasured.

    Metrics are named as the harness does, `acc` being `accuracy`; one after a filter of the answers (other
    than `none`) is `<metric>/<filter>`. Tasks whose group sums them up are in the rows only, unless asked for
    by name.
    """

    metrics: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]
    problems: list[str]


def outcome(found: Mapping[str, Any], asked: Sequence[str], problems: Sequence[str]) -> Outcome:
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = found["samples"]
    silent = {task: count for task, own in samples.items() if (count := _without_likelihood(own))}
    metrics = {
        name: _numbers(values, bool(silent.keys() & _leaves(name, found["group_subtasks"])))
        for name, values in found["results"].items()
        if name in asked or not _summed_up(name, found)
    }
    told = [
        f"{task}: the model gives NaN for {count} of {len({s['doc_id'] for s in samples[task]})} examples; "
        "so the task's metrics are NaN"
        for task, count in silent.items()
    ]
    rows = [row for task, own in samples.items() for row in _rows(task, own)]
    columns = dict.fromkeys(key for row in rows for key in row)
    whole = [{key: row.get(key, math.nan) for key in columns} for row in rows]
    return Outcome({name: own for name, own in metrics.items() if own}, whole, [*told, *problems])


def _numbers(values: Mapping[str, Any], unmeasured: bool) -> dict[str, float]:
    return {
        _named(*key.split(",", 1)): math.nan if unmeasured else float(value)
        for key, value in values.items()
        if "," in key and "_stderr," not in key and isinstance(value, Real)
    }


def _named(metric: str, chosen: str) -> str:
    name = "accuracy" + metric.removeprefix("acc") if metric == "acc" or metric.startswith("acc_") else metric
    return name if chosen == "none" else f"{name}/{chosen}"


def _leaves(name: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    if name not in groups:
        return {name}
    return {leaf for child in groups[name] for leaf in _leaves(child, groups)}


def _summed_up(name: str, found: Mapping[str, Any]) -> bool:
    groups = found["group_subtasks"]
    return any(
        name != group and name in {*groups[group], *_leaves(group, groups)}
        for group in found.get("groups", {})
    )


def _without_likelihood(samples: Sequence[Mapping[str, Any]]) -> int:
    return len({s["doc_id"] for s in samples if any(math.isnan(logp) for logp in _logps(s))})


def _logps(sample: Mapping[str, Any]) -> list[float]:
    """Log-probability of each choice, or of the text; nothing of free answers."""
    first = [each[0] for each in sample["resps"]]
    values = [each[0] if isinstance(each, tuple) else each for each in first]
    return [float(value) for value in values if isinstance(value, Real)]


def _rows(task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per example; what several filters make of its answer is side by side."""
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], _described(task, sample))
        lost = any(math.isnan(logp) for logp in _logps(sample))
        for metric in sample["metrics"]:
            if isinstance(value := sample[metric], Real):
                row[_named(metric, sample["filter"])] = math.nan if lost else float(value)
    return list(rows.values())


def _described(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    arguments, target, logps = sample["arguments"], sample["target"], _logps(sample)
    prompt = str(arguments[0][0])
    row = {
        "set": task,
        "id": f"{task}/{sample['doc_id']}",
        "question": prompt if len(prompt) <= _QUESTION else "…" + prompt[1 - _QUESTION :],
        "answer": str(target),
        "prediction": None,
        "logp": logps[0] if len(arguments) == 1 and logps else math.nan,
    }
    if len(arguments) == 1 and logps and len(arguments[0]) == 1:
        row["answer"] = None  # a text that is scored whole: it stands as the question
    elif len(arguments) > 1 and len(logps) == len(arguments):
        choices = _choices(arguments, halved="acc_mutual_info" in sample["metrics"])
        best = int(np.argmax(logps[: len(choices)]))
        row["prediction"] = None if math.isnan(logps[best]) else choices[best]
        if isinstance(target, int) and 0 <= target < len(choices):
            row["answer"] = choices[target]
    elif not logps:
        answer = sample["filtered_resps"][0]
        row["prediction"] = str(answer[0] if isinstance(answer, list) and answer else answer)
    return row


def _choices(arguments: Sequence[Sequence[str]], *, halved: bool) -> list[str]:
    """The choices' texts. With `halved` the second half are the same without their context."""
    own = arguments[: len(arguments) // 2] if halved else arguments
    side = (
        1 if len({each[1] for each in own}) > 1 else 0
    )  # in some tasks the contexts differ, not the answers
    return [str(each[side]).strip()[-_QUESTION:] for each in own]
