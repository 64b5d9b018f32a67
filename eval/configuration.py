"""What a configuration asks of the evaluation: sets of the dataset, and options of benchmarks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from eval import variants
from eval.benchmark import find
from unlearn.config import RunConfig


def evaluation_sets(config: RunConfig) -> set[str]:
    """The sets that the benchmarks score and the variants read, where the dataset has them."""
    scored = {name for benchmark in config.eval.benchmarks for name in find(benchmark).SETS}
    return scored | variants.sets(config.eval.variants)


def benchmark_options(config: RunConfig, name: str) -> dict[str, Any]:
    """The options a benchmark is given: its own, and what the configuration says to all of them."""
    limit = config.eval.max_new_tokens
    knows = any(field.name == "max_new_tokens" for field in fields(find(name).Options))
    common = {"max_new_tokens": limit} if limit is not None and knows else {}
    return common | dict(config.eval.benchmarks[name] or {})
