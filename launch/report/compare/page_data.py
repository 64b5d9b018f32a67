"""What a page holds of curves and generations: less of each run, the more runs there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.metric_catalog import direction, shown, split_key
from launch.report.compare.discover import LeftOut
from launch.report.compare.runs import ComparedRun
from launch.report.geffect.files import thinned
from launch.report.sections import scores
from launch.report.statistics import is_logarithmic
from launch.report.traces import label, number

_DIGITS = 5
_LOSS_PARTS = 3
_TEXTS = ("set", "id", "question", "answer", "generation")
_SCORES = ("probability", "rougeL_recall", "rougeL_f1", "bleu", "exact_match")


def most_points(runs: int) -> int:
    """Of each curve."""
    return min(300, max(20, 24_000 // max(runs, 1)))


def most_examples(runs: int) -> int:
    """Of each set."""
    return min(40, max(2, 2000 // max(runs, 1)))


def most_characters(runs: int) -> int:
    """Of an answer."""
    return 800 if runs <= 30 else 300


def curves(runs: Sequence[ComparedRun]) -> tuple[dict[str, Any], list[LeftOut]]:
    """Loss and evaluated metrics over the steps, thinned evenly; empty where no run has a history.

    `lines`: for each run, by key, the place of its steps in `steps` and the values.
    """
    most = most_points(len(runs))
    steps: dict[tuple[int, ...], int] = {}
    lines: list[dict[str, list[Any]]] = []
    problems = []
    for run in runs:
        found: dict[str, list[Any]] = {}
        try:
            rows = run.history()
        except (ValueError, OSError, KeyError, TypeError) as error:
            problems.append(_without(run, "curves", error))
            rows = []
        for key in _drawn(rows, len(runs)):
            points = [(row["step"], v) for row in rows if (v := number(row.get(key))) is not None]
            points = thinned([point for point in points if math.isfinite(point[1])], most)
            if points:
                place = steps.setdefault(tuple(step for step, _ in points), len(steps))
                found[key] = [place, [float(f"{v:.{_DIGITS}g}") for _, v in points]]
        lines.append(found)
    keys = dict.fromkeys(key for found in lines for key in found)
    if not keys:
        return {}, problems
    losses = sorted((key for key in keys if _is_loss(key)), key=lambda key: (key != "loss", key))
    every = [*losses, *(key for key in keys if key not in losses)]
    return {
        "keys": [_about(key) for key in every],
        "losses": len(losses),
        "steps": [list(each) for each in steps],
        "lines": [{every.index(key): line for key, line in found.items()} for found in lines],
        "most": most,
    }, problems


def _about(key: str) -> dict[str, Any]:
    bench = split_key(key)[0]
    name = key if _is_loss(key) else f"{bench.upper()} {label(key)}"
    return {"key": key, "name": name, "way": direction(key), "log": is_logarithmic(key)}


def _drawn(rows: Sequence[Mapping[str, Any]], runs: int) -> list[str]:
    """The loss with some of its parts, and the telling metrics that were evaluated during training."""
    keys = {key for row in rows for key in row}
    parts = sorted(key for key in keys if _is_loss(key))[: 1 + _LOSS_PARTS]
    evaluated = [key for key in keys if direction(key)]
    return parts + shown(evaluated, min(24, max(6, 2400 // max(runs, 1))))


def _is_loss(key: str) -> bool:
    return key in ("loss", "train/loss") or key.startswith("loss/")


def generations(runs: Sequence[ComparedRun]) -> tuple[dict[str, Any], list[LeftOut]]:
    """The first answers to each set's questions, cut where they are long.

    `sets`: name to questions (id, question, truth); `answers`: for each run, by set and place of the
    question, the text and its scores.
    """
    most, long = most_examples(len(runs)), most_characters(len(runs))
    sets: dict[str, dict[str, list[str]]] = {}
    answers: list[dict[str, dict[int, list[str]]]] = []
    problems = []
    for run in runs:
        said: dict[str, dict[int, list[str]]] = {}
        try:
            rows = _generated(run, most)
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(_without(run, "generations", error))
            rows = []
        for name, row in rows:
            questions = sets.setdefault(name, {})
            asked = [row["id"], cut(row.get("question"), long), cut(row.get("answer"), long)]
            questions.setdefault(row["id"], asked)
            place = list(questions).index(row["id"])
            said.setdefault(name, {})[place] = [cut(row["generation"], long), scores(row)]
        answers.append(said)
    order = sorted(sets, key=lambda name: ("forget" not in name, "retain" not in name, name))
    made = {
        "sets": {name: list(sets[name].values()) for name in order},
        "answers": answers,
        "most": most,
        "long": long,
    }
    return (made if sets else {}), problems


def _generated(run: ComparedRun, most: int) -> list[tuple[str, dict[str, Any]]]:
    """The first rows of each set that have a generation, with "benchmark set" for a name."""
    if run.path is None:
        return []
    found = []
    for file in sorted(run.path.glob("eval/*/examples.parquet")):
        counts: dict[str, int] = {}
        with pq.ParquetFile(file) as opened:
            names = set(opened.schema_arrow.names)
            if not {"set", "id", "generation"} <= names:
                continue
            columns = [name for name in (*_TEXTS, *_SCORES) if name in names]
            for batch in opened.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    name = f"{file.parent.name} {row['set']}"
                    if row["generation"] is not None and counts.get(name, 0) < most:
                        counts[name] = counts.get(name, 0) + 1
                        found.append((name, {**row, "id": str(row["id"])}))
    return found


def _without(run: ComparedRun, what: str, error: Exception) -> LeftOut:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return LeftOut(run.name, f"its {what} only, which cannot be read ({reason})")


def cut(text: str | None, long: int) -> str:
    text = text or ""
    return text if len(text) <= long else f"{text[:long].rstrip()} …"
