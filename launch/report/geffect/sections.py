"""The G-effect in the report of a run: charts, examples with their tokens, pairs of examples, the check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.report.geffect.example_charts import check_charts, grid_charts, questions
from launch.report.geffect.files import Tables, effect_rows, strongest, tables
from launch.report.geffect.token_charts import MAX_STEPS, token_charts
from launch.report.geffect.training_charts import layer_maps, over_training
from launch.report.traces import Figure, Row, number
from unlearn.probes.geffect.parameter_groups import GROUPS

MAX_EXAMPLES = 12  # of each set
MAX_TOKENS = 200  # of an answer
MAX_HURT = 10
_TOKENS = ("set", "id", "position", "text", "logp", "weight", "objective", "unlearn", "retain")


def geffect(run_dir: Path, history: Sequence[Row]) -> tuple[dict[str, list[Figure]], dict[str, Any]]:
    """Return charts by section, and the tables of the template; empty without a probe.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    rows = effect_rows(history)
    layers, examples, grid = (tables(run_dir, kind) for kind in ("layers", "examples", "grid"))
    tokens = tables(run_dir, "tokens", limit=MAX_STEPS, columns=_TOKENS)
    figures = {
        "geffect": over_training(rows),
        "geffect_layers": layer_maps(layers),
        "geffect_points": token_charts(tokens),
        "geffect_grid": grid_charts(grid, examples),
        "geffect_check": check_charts(rows, examples),
    }
    shown = {
        "sets": strongest_examples(examples, tokens),
        "hurt": hurt(grid, examples),
        "checks": checks(rows),
    }
    return figures, shown


def strongest_examples(examples: Tables, tokens: Tables) -> dict[str, dict[str, Any]]:
    """Return by set the examples that the objective moves most at the last step, and the groups of layers."""
    if not examples:
        return {}
    step = max(examples)
    table = examples[step]
    groups = [name for name in GROUPS if f"objective/{name}" in table.column_names]
    spans = _spans(tokens, step)
    by_set: dict[str, dict[str, Any]] = {}
    rows = table.to_pylist()
    for name in ("forget", "retain"):
        mine = strongest([row for row in rows if row["set"] == name], "objective", MAX_EXAMPLES)
        if mine:
            rows_of = [{**row, "spans": spans.get((name, str(row["id"])), [])} for row in mine]
            by_set[name] = {"step": step, "groups": groups, "rows": rows_of}
    return by_set


def _spans(tokens: Tables, step: int) -> dict[tuple[str, str], list[tuple[str, float, str]]]:
    """By example its tokens, each with its effect as a share of the largest one there, and a hover."""
    if step not in tokens:
        return {}
    answers: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in tokens[step].to_pylist():
        answers.setdefault((row["set"], str(row["id"])), []).append(row)
    spans = {}
    for key, rows in answers.items():
        rows = sorted(rows, key=lambda row: row["position"])[:MAX_TOKENS]
        values = [number(row.get("objective")) or 0.0 for row in rows]
        values = [value if np.isfinite(value) else 0.0 for value in values]
        largest = max(abs(value) for value in values) or 1.0
        spans[key] = [
            (str(row["text"]), round(value / largest, 3), f"{value:.4g}, p {np.exp(row['logp']):.4g}")
            for row, value in zip(rows, values, strict=True)
        ]
    return spans


def hurt(grid: Tables, examples: Tables) -> list[dict[str, Any]]:
    """Return the retain examples that forgetting hurts most at the last step.

    With the mean effect over the forget examples, and the forget example that hurts it most.
    """
    if not grid:
        return []
    asked = questions(examples)
    by_retain: dict[str, list[Mapping[str, Any]]] = {}
    for row in grid[max(grid)].to_pylist():
        if number(row.get("effect")) is not None:
            by_retain.setdefault(str(row["retain_id"]), []).append(row)
    examples_hurt = []
    for key, rows in by_retain.items():
        worst = min(rows, key=lambda row: row["effect"])
        examples_hurt.append(
            {
                "id": key,
                "question": asked.get(("retain", key), ""),
                "mean": float(np.mean([row["effect"] for row in rows])),
                "worst": worst["effect"],
                "by_id": str(worst["forget_id"]),
                "by": asked.get(("forget", str(worst["forget_id"])), ""),
            }
        )
    return sorted(examples_hurt, key=lambda row: row["mean"])[:MAX_HURT]


_CHECKS = (
    ("step size η", "step"), ("correlation", "correlation"), ("explained", "explained"),
    ("forget predicted", "forget_predicted"), ("forget true", "forget_true"),
    ("forget, 2nd order", "forget_second_order"), ("retain predicted", "retain_predicted"),
    ("retain true", "retain_true"), ("retain, 2nd order", "retain_second_order"),
)  # fmt: skip


def checks(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the check of each step as a table: heads; step, cells and whether the step is trusted."""
    shown = [(head, f"geffect/check/{name}") for head, name in _CHECKS]
    shown = [(head, key) for head, key in shown if any(number(row.get(key)) is not None for row in rows)]
    if not shown:
        return {}
    lines = [
        (row["step"], [row.get(key) for _, key in shown], row.get("geffect/trusted"))
        for row in rows
        if any(number(row.get(key)) is not None for _, key in shown)
    ]
    return {"heads": [head for head, _ in shown], "rows": lines}
