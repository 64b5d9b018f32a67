"""Curves and generations in the page of a comparison: less of each run, the more runs there are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from eval.metric_catalog import info, set_order, shown
from launch.report.compare.runs import ComparedRun, measured
from launch.report.discover import LeftOut
from launch.report.geffect.files import thinned
from launch.report.run_files import example_rows, has_answers
from launch.report.sections import scores
from launch.report.statistics import is_logarithmic
from launch.report.traces import label, number

_DIGITS = 5
_LOSS_PARTS = 3
_TEXTS = ("set", "id", "question", "answer", "generation")


def max_points(runs: int) -> int:
    """Return the limit of points of a curve."""
    return min(300, max(20, 24_000 // max(runs, 1)))


def max_examples(runs: int) -> int:
    """Return the limit of examples of a set."""
    return min(40, max(2, 2000 // max(runs, 1)))


def max_characters(runs: int) -> int:
    """Return the limit of characters of an answer."""
    return 800 if runs <= 30 else 300


def curves(runs: Sequence[ComparedRun]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return loss and evaluated metrics over the steps, thinned evenly; {} if no run has a history.

    `lines`: for each run, by key, the place of its steps in `steps` and the values.
    """
    limit = max_points(len(runs))
    steps: dict[tuple[int, ...], int] = {}
    lines: list[dict[str, list[Any]]] = []
    problems = []
    benchmarks = {info(key).benchmark for run in runs for key in measured(run.results)} - {""}
    for run in runs:
        drawn: dict[str, list[Any]] = {}
        try:
            rows = run.history()
        except (ValueError, OSError, KeyError, TypeError) as error:
            problems.append(_without(run, "curves", error))
            rows = []
        for key in _drawn(rows, benchmarks, len(runs)):
            points = [(row["step"], v) for row in rows if (v := number(row.get(key))) is not None]
            points = thinned([point for point in points if math.isfinite(point[1])], limit)
            if points:
                place = steps.setdefault(tuple(step for step, _ in points), len(steps))
                drawn[key] = [place, [float(f"{v:.{_DIGITS}g}") for _, v in points]]
        lines.append(drawn)
    keys = dict.fromkeys(key for drawn in lines for key in drawn)
    if not keys:
        return {}, problems
    losses = sorted((key for key in keys if _is_loss(key)), key=lambda key: (key != "loss", key))
    every = [*losses, *(key for key in keys if key not in losses)]
    return {
        "keys": [_about(key) for key in every],
        "losses": len(losses),
        "steps": [list(each) for each in steps],
        "lines": [{every.index(key): line for key, line in drawn.items()} for drawn in lines],
        "most": limit,
    }, problems


def _about(key: str) -> dict[str, Any]:
    bench = info(key).benchmark
    name = key if _is_loss(key) else f"{bench.upper()} {label(key)}"
    return {"key": key, "name": name, "way": info(key).direction, "log": is_logarithmic(key)}


def _drawn(rows: Sequence[Mapping[str, Any]], benchmarks: Collection[str], runs: int) -> list[str]:
    """The loss, some of its parts, and the most important metrics that were evaluated during training."""
    keys = {key for row in rows for key in row}
    parts = sorted(key for key in keys if _is_loss(key))[: 1 + _LOSS_PARTS]
    evaluated = [key for key in keys if info(key).direction or info(key).benchmark in benchmarks]
    return parts + shown(evaluated, min(24, max(6, 2400 // max(runs, 1))))


def _is_loss(key: str) -> bool:
    return key in ("loss", "train/loss") or key.startswith("loss/")


def generations(runs: Sequence[ComparedRun]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the first answers to each set's questions, long ones cut.

    `sets`: name to questions (id, question, truth); `answers`: for each run, by set and place of the
    question, the text and its scores.
    """
    limit, longest = max_examples(len(runs)), max_characters(len(runs))
    sets: dict[str, dict[tuple[str, ...], list[str]]] = {}
    answers: list[dict[str, dict[int, list[str]]]] = []
    problems = []
    for run in runs:
        of_run: dict[str, dict[int, list[str]]] = {}
        try:
            rows = _generated(run, limit)
        except (OSError, ValueError) as error:
            problems.append(_without(run, "generations", error))
            rows = []
        for name, row in rows:
            questions = sets.setdefault(name, {})
            question = [row["id"], cut(row.get("question"), longest), cut(row.get("answer"), longest)]
            # By their texts as well: authors that are drawn anew for each seed have the same ids.
            key = (row["id"], str(row.get("question")), str(row.get("answer")))
            questions.setdefault(key, question)
            place = list(questions).index(key)
            of_run.setdefault(name, {})[place] = [cut(row["generation"], longest), scores(row)]
        answers.append(of_run)
    order = sorted(sets, key=lambda name: set_order(*name.split(" ", maxsplit=1)))
    data = {
        "sets": {name: list(sets[name].values()) for name in order},
        "answers": answers,
        "most": limit,
        "long": longest,
    }
    return (data if sets else {}), problems


def _generated(run: ComparedRun, limit: int) -> list[tuple[str, dict[str, Any]]]:
    """The first rows of each set that have an answer, by "benchmark set"."""
    if run.path is None:
        return []
    answered: dict[str, list[dict[str, Any]]] = {}
    for benchmark, rows in example_rows(run.path, _columns):
        for row in rows:
            of_set = answered.setdefault(f"{benchmark} {row['set']}", [])
            if row["generation"] is not None and len(of_set) < limit:
                of_set.append({**row, "id": str(row["id"])})
    return [(name, row) for name, rows in answered.items() for row in rows]


def _columns(schema: pa.Schema) -> list[str]:
    """Texts and numbers of a benchmark that generates."""
    if not has_answers(schema):
        return []
    texts = [name for name in _TEXTS if name in schema.names]
    return texts + [column.name for column in schema if pa.types.is_floating(column.type)]


def _without(run: ComparedRun, what: str, error: Exception) -> LeftOut:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return LeftOut(run.name, f"its {what} only, which cannot be read ({reason})")


def cut(text: str | None, longest: int) -> str:
    """Cut a text after so many characters."""
    text = text or ""
    return text if len(text) <= longest else f"{text[:longest].rstrip()} …"
