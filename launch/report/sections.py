"""What the sections of a report show, from runs that were read; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from eval.benchmark import Better
from eval.judgement.aspects import ASPECTS, PREFIX
from eval.judgement.judge import Aspect, Judged
from eval.judgement.metrics import METRICS
from eval.metric_catalog import in_order, info, is_detail, split_key, split_variant
from launch.report.results_table import format_value
from launch.report.run_files import Example, ExampleKey, Run
from launch.report.traces import label

SAMPLES_PER_SET = 100
_MAX_CARDS = 8
_TITLES = {
    "prompts": "Asked in other words · {}",
    "leakage": "Sampled answers · chance that one of k leaks",
    "best": "Sampled answers · expected best ROUGE-L recall of k",
}
# Per-example numbers worth a place beside an answer.
_SCORES = {
    **{"rougeL_recall": "ROUGE-L", "rougeL_f1": "ROUGE-L F1", "bleu": "BLEU", "exact_match": "exact"},
    **{"probability": "P(truth)"},
}


def judgements(judged: Mapping[str, Judged]) -> list[dict[str, Any]]:
    """The four aspects as far as they were asked for: the value of each role, and its components."""
    found = []
    for name in ASPECTS:
        aspects = {role: each.aspects[name] for role, each in judged.items()}
        if any(each.components or each.missing for each in aspects.values()):
            found.append(
                {
                    "label": label(f"judged/{name}"),
                    "hint": METRICS[f"{PREFIX}/{name}"].text,
                    "values": {role: each.value for role, each in aspects.items()},
                    "components": _components(aspects),
                }
            )
    return found


def _components(aspects: Mapping[str, Aspect]) -> list[tuple[str, list[float | None]]]:
    """Each component with the value of each role, None where it is not measured; the own run's first."""
    names = dict.fromkeys(
        n for each in reversed(list(aspects.values())) for n in (*each.components, *each.missing)
    )
    return [(name, [each.components.get(name) for each in aspects.values()]) for name in names]


def cards(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The headlines, and what is still known of the forget and the retain set."""
    found = []
    for key in in_order(key for run in runs for key in run.results):
        one = info(key)
        declared = one.declared
        if declared is None or one.is_detail or one.variant or one.benchmark == PREFIX:
            continue
        headline = not one.group and declared.better is not Better.NEITHER
        if headline or "card" in declared.views:
            values = {run.role: run.results.get(key) for run in runs}
            scaled = one.metric != "forget_quality" and _in_unit(values)
            found.append(
                {"key": key, "label": label(key), "bench": one.benchmark, "values": values, "scaled": scaled}
            )
    return found[:_MAX_CARDS]


def _in_unit(values: Mapping[str, float | None]) -> bool:
    """Whether there are values, and all are in [0, 1], so that they have a place on a bar."""
    known = [value for value in values.values() if value is not None and not math.isnan(value)]
    return bool(known) and all(0 <= value <= 1 for value in known)


def attack_tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Other phrasings by metric, and samples by number of tries, for the roles that were asked so.

    `rows`: row → role → value with what stands beside it.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    roles: dict[str, dict[str, None]] = {}
    for key in in_order(key for run in runs for key in run.results if not is_detail(key)):
        place = _cell(key)
        if place is None:
            continue
        title, row = place
        cells = {
            run.role: {"value": run.results.get(key), "beside": beside(run.results, key)} for run in runs
        }
        tables.setdefault(title, {})[row] = cells
        roles.setdefault(title, {}).update(dict.fromkeys(run.role for run in runs if key in run.results))
    order = [run.role for run in runs]
    return [
        {"title": title, "rows": rows, "roles": [role for role in order if role in roles[title]]}
        for title, rows in tables.items()
    ]


def _cell(key: str) -> tuple[str, str] | None:
    """The table and the row of a key, None for one that is in none."""
    bench, group, metric = split_key(key)
    tries = re.search(r"_at_(\d+)$", metric)
    if split_variant(key)[0]:
        return None
    if bench == "prompts":
        return _TITLES["prompts"].format(label(metric)), group
    if bench == "sampling" and tries is not None:
        return _TITLES["leakage" if metric.startswith("leakage") else "best"], f"k = {tries[1]}"
    return None


def beside(results: Mapping[str, float | None], key: str) -> str:
    """What else there is of a value: its interval, and how many examples are missing from it."""
    low, high, missing = (results.get(f"{key}{end}") for end in ("_low", "_high", "/missing"))
    parts = [] if low is None or high is None else [f"{format_value(low)} to {format_value(high)}"]
    return ", ".join(parts + ([f"{missing:.0f} missing"] if missing else []))


def samples(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Questions that some model answered in words, the first of each set, forget first."""
    found: dict[tuple[str, str], dict[ExampleKey, None]] = {}
    for run in reversed(runs):
        for key, example in run.examples.items():
            if example.get("generation") is not None:
                found.setdefault(key[:2], {})[key] = None
    several = len({bench for bench, _ in found}) > 1
    for bench, name in sorted(found, key=_reading):
        for key in islice(found[bench, name], SAMPLES_PER_SET):
            answers = [(run.role, run.examples[key]) for run in runs if key in run.examples]
            yield {
                "set": f"{bench} {name}" if several else name,
                "id": key[2],
                "asked": answers[-1][1],
                "answers": [(role, example, scores(example)) for role, example in answers],
            }


def _reading(place: tuple[str, str]) -> tuple[object, ...]:
    bench, name = place
    return bench in ("prompts", "sampling"), bench, "forget" not in name, "retain" not in name, name


def scores(example: Example) -> str:
    """What an example's row tells of its answer in numbers."""
    shown = [f"{text} {format_value(example[name])}" for name, text in _SCORES.items() if name in example]
    return " · ".join(shown)
