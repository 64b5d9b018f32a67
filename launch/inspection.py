"""What the configuration alone cannot show: rows, tokenizers and model shapes. Weights stay unread."""

from __future__ import annotations

from eval.evaluate import plan as requests_of
from launch.model_inspection import inspect_models
from launch.plan import Plan
from launch.processes import is_complete
from unlearn.config import RunConfig
from unlearn.data.sources import load_sets
from unlearn.data.sources.tables import UnavailableError
from unlearn.data.verify import check_companions, overlaps
from unlearn.methods import training_sets
from unlearn.run import benchmark_options, evaluation_sets, watched_sets


def inspect(config: RunConfig, plan: Plan) -> list[str]:
    """Read the data and the model's description before anything is trained.

    Nothing is read when every run of the plan is complete.

    Returns:
        Warnings: the run is possible, but perhaps not what was meant.

    Raises:
        UserError: the data or the model make the run impossible.
    """
    if all(is_complete(run) for run in plan.runs):
        return []
    return [*_rows(plan), *_tokens(config, plan)]


def _rows(plan: Plan) -> list[str]:
    """Every row of every set that a run of the plan reads: columns, types, overlap of forget and retain set.

    A dry run need not reach the hub; what it cannot read there is a warning.
    """
    warnings: list[str] = []
    read = []
    for run in reversed(plan.runs):  # the wanted run first: its keys are those that the user gave
        config = run.job.config
        names = training_sets(config) | watched_sets(config) | evaluation_sets(config)
        if is_complete(run) or (config.dataset, names) in read:
            continue
        read.append((config.dataset, names))
        try:
            sets = load_sets(config.dataset, names)
        except UnavailableError as error:
            if not config.dry_run:
                raise
            warnings.append(f"{error}; its rows were not checked")
            continue
        check_companions(config, sets)
        if config.probe.on and config.probe.method is not None:
            check_companions(config.model_copy(update={"method": config.probe.method}), sets)
        warnings += overlaps(config.dataset, sets)
        scored = {name: sets[name][: config.eval.limit] for name in evaluation_sets(config) & sets.keys()}
        for benchmark in config.eval.benchmarks:
            requests_of(benchmark, scored, benchmark_options(config, benchmark))
    return list(dict.fromkeys(warnings))


def _tokens(config: RunConfig, plan: Plan) -> list[str]:
    """Tokenizer and prompt format, and token ids and lengths against vocabulary and positions."""
    return inspect_models(config, plan)
