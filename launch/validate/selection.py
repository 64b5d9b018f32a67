"""Check `eval.select`, the rule that chooses the step whose model is kept."""

from __future__ import annotations

from contextlib import suppress

from eval.benchmark import Better, find, is_live
from eval.configuration import benchmark_options
from eval.metric_catalog import can_be, metrics_of
from eval.selection import NEEDS, direction
from unlearn.config import RunConfig, SelectConfig
from unlearn.data.sources import before
from unlearn.errors import ConfigError, did_you_mean

_FORGETTING = (Better.FORGOTTEN_IF_HIGHER, Better.FORGOTTEN_IF_LOWER)
_QUALITY = (Better.HIGHER, Better.LOWER)


def selection_problems(config: RunConfig, sets: set[str]) -> list[str]:
    """Return what is wrong with `eval.select` for a dataset with these sets; needs no model."""
    select, method = config.eval.select, config.method
    if select.rule is None:
        return _without_rule(select)
    name = f"eval.select.rule={select.rule}"
    problems = []
    for key in NEEDS[select.rule]:
        if getattr(select, key) is None:
            problems.append(f"eval.select.{key} is not set: {name} needs it")
    for key in ("floor", "step"):
        if getattr(select, key) is not None and key not in NEEDS[select.rule]:
            problems.append(
                f"eval.select.{key}={getattr(select, key)}: {name} does not read it; leave it out"
            )
    every = config.eval.every_steps
    if every is None:
        problems.append(f"eval.every_steps is not set: {name} chooses among the steps that are evaluated")
    elif select.step is not None and select.step % every:
        problems.append(f"eval.select.step={select.step} is not evaluated: eval.every_steps={every}")
    if method.update_scale != 1:
        problems.append(
            f"{name}: with method.update_scale={method.update_scale} the saved model is not the one that is "
            "measured on the way; leave eval.select out"
        )
    if method.smooth.name == "average":
        problems.append(
            f"{name}: with method.smooth.name=average the saved model is a mean over steps and none of those "
            "that are measured on the way; leave eval.select out"
        )
    with suppress(ConfigError):  # reported by another check
        if select.rule != "last" and method.makes_model and before(config.dataset):
            problems.append(
                f"{name}: the next of several requests in a row starts from the last step of the one before, "
                "not from the chosen one; leave eval.select out"
            )
    return problems + _metric_problems(config, select, sets)


def _without_rule(select: SelectConfig) -> list[str]:
    asked = sorted(select.model_fields_set - {"rule"})
    changed = [key for key in asked if getattr(select, key) != SelectConfig.model_fields[key].default]
    return [f"eval.select.rule is not set: eval.select.{changed[0]} needs one"] if changed else []


def _metric_problems(config: RunConfig, select: SelectConfig, sets: set[str]) -> list[str]:
    problems = []
    benchmarks = {
        name: metrics_of(name, sets, benchmark_options(config, name)) for name in config.eval.benchmarks
    }
    known = [key for keys in benchmarks.values() for key in keys]
    for option in ("metric", "utility"):
        key = getattr(select, option)
        if key is None:
            continue
        where = f"eval.select.{option}={key}"
        owners = [name for name, keys in benchmarks.items() if can_be(key, keys)]
        if not owners:
            near = did_you_mean(key, known)
            problems.append(f"{where}: no benchmark of eval, with its options, gives it{near}")
            continue
        if select.divides and any(is_live(find(name)) and not find(name).SETS for name in owners):
            problems.append(
                f"{where}: benchmark {owners[0]} has no examples that can be divided; choose another metric, "
                "or set eval.select.on=reported"
            )
        problems += [f"{where}: {problem}" for problem in _direction_problems(select, option, direction(key))]
    return problems


def _direction_problems(select: SelectConfig, option: str, better: Better) -> list[str]:
    if option not in NEEDS.get(str(select.rule), ()):
        return []
    if option == "utility" and better not in _QUALITY:
        return ["it is no metric of utility (docs/metrics.md says which way a metric is better)"]
    if select.rule == "first_below_retain" and better not in _FORGETTING:
        return ["no metric of how much is forgotten, which the retain model's value can be compared with"]
    if better is Better.NEITHER:
        return ["no direction in which it is better is declared"]
    return []


def selection_warnings(config: RunConfig) -> list[str]:
    """Say where the rule sees what is reported, or has nothing to choose."""
    select, method = config.eval.select, config.method
    if select.rule is None:
        return []
    warnings = []
    if not select.divides and select.rule not in ("last", "fixed"):
        warnings.append(
            "eval.select.on=reported: the step is chosen on the examples that are reported, so the results "
            "are better than those on new examples"
        )
    if not (method.terms or method.further):
        warnings.append(f"eval.select: method {method.name} trains nothing, so there is no step to choose")
    return warnings
