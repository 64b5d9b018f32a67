"""Check a configuration beyond its schema: files, names and combinations. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launch.redact import secrets_in
from launch.tracking import trackers
from launch.validate.machine import hardware_problems
from launch.validate.model import model_problems
from launch.validate.training import dataset_problems, method_problems, preset_problems, probe_problems
from launch.validate.unlearned import unlearned_problems
from unlearn.config import SLOTS, GoalConfig, RunConfig
from unlearn.data.sources import available
from unlearn.errors import ConfigError
from unlearn.processor import allowed_cores


def check(config: RunConfig) -> None:
    """Check that a configuration can run.

    Raises:
        ConfigError: all problems at once, by dotted name.
    """
    problems = [
        *model_problems(config),
        *dataset_problems(config),
        *hardware_problems(config),
        *method_problems(config),
        *preset_problems("model.finetune", "finetune", config.model.finetune),
        *preset_problems("method.reinforced", "reinforce", config.method.reinforced),
        *unlearned_problems(config),
        *_evaluation(config),
        *probe_problems(config),
        *_tracker(config),
        *_secrets(config),
    ]
    if problems:
        raise ConfigError(problems)


def warnings_of(config: RunConfig, *, searched: bool = False) -> list[str]:
    """Return warnings about settings that have no effect or are probably not intended.

    searched: whether a sweeper that optimises has chosen the run.
    """
    from eval import variants
    from eval.configuration import baseline_warnings
    from launch.validate.selection import selection_warnings

    warnings = variants.warnings_of(config) + baseline_warnings(config) + selection_warnings(config)
    if config.eval.every_steps is not None and not config.eval.benchmarks:
        warnings.append("eval.every_steps: measures nothing, since no benchmark is chosen (eval=none)")
    if config.goal != GoalConfig() and not searched:
        warnings.append("goal: used in a search only (-m hydra/sweeper=optuna, see docs/sweeps.md)")
    if config.method.smooth.name in ("sam", "random") and config.hardware.dtype == "bf16":
        warnings.append(
            f"method.smooth.name={config.method.smooth.name}: much of a small perturbation rounds away with "
            "hardware.dtype=bf16; smooth/changed in the history is the share of the weights that it changes"
        )
    if config.probe.name == "geffect" and config.hardware.dtype == "bf16":
        warnings.append(
            "probe.check: left out with hardware.dtype=bf16, in which its small step rounds away; nothing "
            "then says whether the prediction holds (geffect/trusted)"
        )
    method = config.method
    warnings += [
        f"method.{slot}_weight={method.weight(slot):g}: has no effect, since the method has no {slot} term"
        for slot in SLOTS
        if method.weight(slot) != 1 and slot not in method.terms
    ]
    cores = allowed_cores()
    hardware = config.hardware
    if hardware.device == "cpu" and hardware.processes > cores * hardware.nodes:
        warnings.append(
            f"hardware.processes={hardware.processes}: more than the {cores} cores that this command may "
            "use; processes share cores, and each has the model in memory"
        )
    return warnings


def _secrets(config: RunConfig) -> list[str]:
    """Name values that hold a secret: a run's files, reports and dashboards have the whole configuration."""
    return [
        f"{key}: holds the value of the variable {name}, which the run's processes have: leave it out"
        for key, text in _texts(config.model_dump(mode="json"))
        for name in secrets_in(text)
    ]


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a value with its dotted key; that of a list's items is the list's."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)


def _tracker(config: RunConfig) -> list[str]:
    problems = trackers.check(config.tracker)
    if config.tracker.model and config.method.makes_model and not config.save_model:
        problems.append("tracker.model=True: save_model=False keeps no model to upload; set save_model=true")
    return problems


def _evaluation(config: RunConfig) -> list[str]:
    from eval import variants
    from eval.benchmark import find, is_live, options_of
    from eval.configuration import baseline_problems, benchmark_options
    from launch.validate.selection import selection_problems

    problems = []
    try:
        existing = set(available(config.dataset))
    except ConfigError:  # reported by another check
        return []
    for name in config.eval.benchmarks:
        try:
            benchmark = find(name)
            options = options_of(benchmark, benchmark_options(config, name), name)
        except ConfigError as error:
            problems += error.problems
            continue
        if benchmark.SETS and not benchmark.SETS.keys() & existing:
            problems.append(
                f"eval.benchmarks.{name}: scores {', '.join(benchmark.SETS)}, but dataset "
                f"{config.dataset.name} has none of these (it has {', '.join(sorted(existing))}); choose "
                "another eval=… or dataset=…"
            )
        if is_live(benchmark):
            problems += [f"eval.benchmarks.{name}: {problem}" for problem in benchmark.check(options)]
    else:
        problems += selection_problems(config, existing)
    problems += variants.check(config.eval.variants, config)
    if config.eval.variants and not config.eval.benchmarks:
        chosen = ",".join(config.eval.variants)
        problems.append(
            f"eval.variants: no benchmark scores the modified models; choose one too: eval=[tofu,{chosen}]"
        )
    log = config.model.retain_log
    if log is not None and config.model.retain is not None:
        problems.append(f"model.retain_log={log}: replaces model.retain; set only one of the two")
    return problems + baseline_problems(config)
