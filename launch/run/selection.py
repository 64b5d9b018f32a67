"""What a choice among a run's steps (`eval.select`) takes from other runs, and what it depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.configuration import evaluation_sets
from eval.selection import Criterion, compares_with, criterion
from launch.job import Baselines
from unlearn.config import RunConfig
from unlearn.data.sources import identity
from unlearn.errors import ConfigError
from unlearn.run_dir import RunDir

_EVALUATED_BY = {
    "target": "eval.compare=true and a method that starts from it",
    "retain model": "eval.compare=true and model.retain (a published log has no values on these examples)",
}


def refuse_unmeasured(config: RunConfig, baselines: Baselines) -> None:
    """Refuse a rule that compares with a model which no run of the plan evaluates.

    Raises:
        ConfigError: names the rule and the model.
    """
    select = config.eval.select
    if select.rule is None or not config.method.makes_model:
        return
    evaluated = {"target": baselines.target, "retain model": baselines.retain}
    lacking = sorted(of for of in compares_with(select) if evaluated[of] is None)
    if lacking:
        raise ConfigError(
            [
                f"eval.select.rule={select.rule}: compares with the {of}, which this run does not evaluate; "
                f"set {_EVALUATED_BY[of]}, or choose another rule or floor"
                for of in lacking
            ]
        )


def selection_identity(config: RunConfig, baselines: Baselines) -> dict[str, Any]:
    """Return what the chosen step depends on: the rule, what is measured, and the compared models."""
    names = {"select", "benchmarks", "every_steps", "max_new_tokens", "limit"}
    others = (baselines.target, baselines.retain, baselines.unlearned)
    return {
        "eval": config.eval.model_dump(mode="json", include=names),
        "evaluated": identity(config.dataset, evaluation_sets(config)),
        "compared": [None if path is None else path.name for path in others],
    }


def selector(config: RunConfig, baselines: Baselines, examples: Mapping[str, int]) -> Criterion:
    """Return the rule, with what the compared models reached on the examples that it sees.

    Raises:
        UserError: one of these values could not be measured.
    """
    select = config.eval.select

    def measured(directory: Path | None) -> dict[str, float]:
        if directory is None:
            return {}
        run = RunDir(directory)
        values = run.read_selection().get("metrics", {}) if select.divides else run.read_results()
        return {key: math.nan if value is None else value for key, value in values.items()}

    target, start = baselines.target, "target"
    if select.rule == "within" and baselines.unlearned is not None:  # close to what it learns from
        target, start = baselines.unlearned, "unlearned model"
    return criterion(select, measured(target), measured(baselines.retain), examples, start=start)
