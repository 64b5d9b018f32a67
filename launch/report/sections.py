"""The sections of a report, from runs that were read; pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from eval.benchmark import Better
from eval.judgement.aspects import PREFIX
from eval.judgement.judge import Aspect, Judged
from eval.judgement.metrics import METRICS
from eval.metric_catalog import declarations, in_order, info, set_order
from launch.report.results_table import format_value
from launch.report.run_files import Example, ExampleKey, Run
from launch.report.statistics import is_logarithmic
from launch.report.traces import label

SAMPLES_PER_SET = 100
_MAX_CARDS = 8
_NOTHING = Aspect(math.nan)
_MAX_SCORES = 5  # numbers next to an answer


def judgements(judged: Mapping[str, Judged]) -> list[dict[str, Any]]:
    """Return the aspects of which something was measured: the value of each role, and its components."""
    names = {name for each in judged.values() for name in each.shown}
    return [
        {
            "label": label(key),
            "hint": one.text,
            "values": {role: each.value for role, each in aspects.items()},
            "components": _components(aspects),
        }
        for key, one in METRICS.items()
        if (name := key.removeprefix(f"{PREFIX}/")) in names
        for aspects in [{role: each.shown.get(name, _NOTHING) for role, each in judged.items()}]
    ]


def _components(aspects: Mapping[str, Aspect]) -> list[tuple[str, list[float | None]]]:
    """Return each component with its value by role, None where it is missing; the run's own come first."""
    names = dict.fromkeys(
        n for each in reversed(list(aspects.values())) for n in (*each.components, *each.missing)
    )
    return [(name, [each.components.get(name) for each in aspects.values()]) for name in names]


def cards(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the headlines and the metrics that declare a card, with the value of each role."""
    shown = []
    for key in in_order(key for run in runs for key in run.results):
        one = info(key)
        declared = one.declared
        if declared is None or one.is_detail or one.variant or one.benchmark == PREFIX:
            continue
        headline = not one.group and declared.better is not Better.NEITHER
        if headline or "card" in declared.views:
            values = {run.role: run.results.get(key) for run in runs}
            logarithmic = is_logarithmic(key)
            shown.append(
                {
                    "key": key, "label": label(key), "bench": one.benchmark, "text": declared.text,
                    "values": values, "logarithmic": logarithmic,
                    "scaled": not logarithmic and _in_unit(values),
                }
            )  # fmt: skip
    return shown[:_MAX_CARDS]


def _in_unit(values: Mapping[str, float | None]) -> bool:
    """Return whether there are values and all are in [0, 1], so that a bar can show them."""
    known = [value for value in values.values() if value is not None and not math.isnan(value)]
    return bool(known) and all(0 <= value <= 1 for value in known)


def attack_tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return tables of the benchmarks that declare an attack, for the roles that have values.

    A table per metric with a row per set or, for metrics named `…_at_<k>`, per number of tries. `rows`: row →
    role → value and note.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    roles: dict[str, dict[str, None]] = {}
    for key in in_order(key for run in runs for key in run.results if not info(key).is_detail):
        place = _cell(key)
        if place is None:
            continue
        title, row = place
        cells = {run.role: {"value": run.results.get(key), "note": note(run.results, key)} for run in runs}
        tables.setdefault(title, {})[row] = cells
        roles.setdefault(title, {}).update(dict.fromkeys(run.role for run in runs if key in run.results))
    order = [run.role for run in runs]
    return [
        {"title": title, "rows": rows, "roles": [role for role in order if role in roles[title]]}
        for title, rows in tables.items()
    ]


def _cell(key: str) -> tuple[str, str] | None:
    """Return the title of the table and the row of a key, None for one that is in no table."""
    one = info(key)
    if one.variant or one.declared is None or not _attacks(one.benchmark):
        return None
    tries = re.search(r"_at_(\d+)$", one.metric)
    if tries is not None:
        return f"{one.benchmark.capitalize()} · {one.declared.text}", f"k = {tries[1]}"
    sets = {
        info(key).group
        for metrics in declarations()
        for key in metrics
        if key.startswith(f"{one.benchmark}/")
    }
    return (f"{one.benchmark.capitalize()} · {label(one.metric)}", one.group) if len(sets) > 1 else None


def _attacks(benchmark: str) -> bool:
    """Return whether a metric of a benchmark is of an attack on the unchanged model."""
    metrics = (item for metrics in declarations() for item in metrics.items())
    return any(one.attack is not None and key.startswith(f"{benchmark}/") for key, one in metrics)


def note(results: Mapping[str, float | None], key: str) -> str:
    """Return what else is known of a value: its interval, and how many examples are missing from it."""
    low, high, missing = (results.get(f"{key}{end}") for end in ("_low", "_high", "/missing"))
    parts = [] if low is None or high is None else [f"{format_value(low)} to {format_value(high)}"]
    return ", ".join(parts + ([f"{missing:.0f} missing"] if missing else []))


def samples(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield questions that some model answered, the first ones of each set, sets to forget first."""
    answered: dict[tuple[str, str], dict[ExampleKey, None]] = {}
    for run in reversed(runs):
        for key, example in run.examples.items():
            if example.get("generation") is not None:
                answered.setdefault(key[:2], {})[key] = None
    several = len({bench for bench, _ in answered}) > 1
    for bench, name in sorted(answered, key=lambda place: set_order(*place)):
        for key in islice(answered[bench, name], SAMPLES_PER_SET):
            answers = [(run.role, run.examples[key]) for run in runs if key in run.examples]
            yield {
                "set": f"{bench} {name}" if several else name,
                "id": key[2],
                "asked": answers[-1][1],
                "answers": [(role, example, scores(example)) for role, example in answers],
            }


def scores(example: Example) -> str:
    """Write the first numbers of an example's row, where benchmarks have the most important ones."""
    known = ((name, v) for name, v in example.items() if isinstance(v, float) and math.isfinite(v))
    return " · ".join(f"{label(name)} {format_value(value)}" for name, value in islice(known, _MAX_SCORES))
