"""What a configuration asks of the evaluation: sets of the dataset, and options of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval import variants
from eval.benchmark import BenchmarkError, Role, Sets, find, is_live, options_of, scored
from eval.collection.requests import Request
from unlearn.config import RunConfig


def evaluation_sets(config: RunConfig) -> set[str]:
    """The sets that the benchmarks score and the variants read, where the dataset has them."""
    scored = {name for benchmark in config.eval.benchmarks for name in find(benchmark).SETS}
    return scored | variants.sets(config.eval.variants)


def benchmark_options(config: RunConfig, name: str) -> dict[str, Any]:
    """The options a benchmark is given: its own, and what the configuration says to all of them."""
    limit = config.eval.max_new_tokens
    knows = "max_new_tokens" in find(name).Options.model_fields
    common = {"max_new_tokens": limit} if limit is not None and knows else {}
    return common | dict(config.eval.benchmarks[name] or {})


def requests_of(benchmark: str, sets: Sets, options: Mapping[str, Any] | None = None) -> list[Request]:
    """What the benchmark will ask of a model; needs none, so it can be called before anything is loaded.

    A benchmark that calls the model itself has no requests; its options are checked.

    Raises:
        BenchmarkError: no set to score, or examples that it cannot score.
        ConfigError: no such benchmark or option.
    """
    module = find(benchmark)
    chosen = options_of(module, options or {}, benchmark)
    if is_live(module):
        problems = module.check(chosen)
        if problems:
            raise BenchmarkError(f"benchmark {benchmark}: {'; '.join(problems)}")
        return []
    return module.requests(own_sets(benchmark, sets, None), chosen)


def own_sets(benchmark: str, sets: Sets, roles: Sequence[Role] | None) -> Sets:
    module = find(benchmark)
    own = scored(module, sets, roles)
    if not own:
        raise BenchmarkError(
            f"benchmark {benchmark} scores {', '.join(module.SETS)}; the dataset has none of them "
            f"({', '.join(sets) or 'nothing'}): choose a dataset that goes with it, or another eval=…"
        )
    return own
