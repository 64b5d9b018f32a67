"""Convert the harness's results: numbers by task and metric, and a row per example."""

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

    Metrics have the harness's names, except that `acc` is `accuracy`; a metric with a filter of the answers
    (other than `none`) is `<metric>/<filter>`. Tasks of a group that summarises them are in the rows only,
    unless requested by name.
    """

    metrics: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]
    problems: list[str]


def outcome(results: Mapping[str, Any], requested: Sequence[str], problems: Sequence[str]) -> Outcome:
    """Convert the results of `lm_eval.evaluator.evaluate` for the requested tasks."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = results["samples"]
    failed = {task: count for task, own in samples.items() if (count := _without_likelihood(own))}
    metrics = {
        name: _numbers(values, bool(failed.keys() & _leaves(name, results["group_subtasks"])))
        for name, values in results["results"].items()
        if name in requested or not _summed_up(name, results)
    }
    notes = [
        f"{task}: the model gives NaN for {count} of {len({s['doc_id'] for s in samples[task]})} examples; "
        "so the task's metrics are NaN"
        for task, count in failed.items()
    ]
    rows = [row for task, own in samples.items() for row in _rows(task, own)]
    columns = dict.fromkeys(key for row in rows for key in row)
    filled = [{key: row.get(key, math.nan) for key in columns} for row in rows]
    return Outcome({name: own for name, own in metrics.items() if own}, filled, [*notes, *problems])


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


def _summed_up(name: str, results: Mapping[str, Any]) -> bool:
    groups = results["group_subtasks"]
    return any(
        name != group and name in {*groups[group], *_leaves(group, groups)}
        for group in results.get("groups", {})
    )


def _without_likelihood(samples: Sequence[Mapping[str, Any]]) -> int:
    return len({s["doc_id"] for s in samples if any(math.isnan(logp) for logp in _logps(s))})


def _logps(sample: Mapping[str, Any]) -> list[float]:
    """Return the log-probability of each choice or of the text; empty for generated answers."""
    first = [each[0] for each in sample["resps"]]
    values = [each[0] if isinstance(each, tuple) else each for each in first]
    return [float(value) for value in values if isinstance(value, Real)]


def _rows(task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make one row per example, with a column for each filter of its answer."""
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
        row["answer"] = None  # a text that is scored as a whole is in the column `question`
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
    """Return the texts of the choices. With `halved`, the second half repeats them without context."""
    own = arguments[: len(arguments) // 2] if halved else arguments
    side = (
        1 if len({each[1] for each in own}) > 1 else 0
    )  # in some tasks the contexts differ, not the answers
    return [str(each[side]).strip()[-_QUESTION:] for each in own]
