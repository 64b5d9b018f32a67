"""Check rows, tokenizers and model shapes of a run before it starts, without reading weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from eval.configuration import benchmark_options, evaluation_sets, requests_of
from launch.inspection.models import inspect_models
from launch.run.complete import is_complete
from launch.run.config_file import read_stored
from launch.run.plan import Plan
from unlearn.config import MethodConfig, RunConfig
from unlearn.data.batching import Schedule
from unlearn.data.example import Example
from unlearn.data.readers import UnavailableError
from unlearn.data.sources import load_sets
from unlearn.data.verify import check_companions, check_retain_model, overlaps, texts_without_questions
from unlearn.errors import ConfigError, UserError
from unlearn.models import load as models
from unlearn.models.skeleton import limits
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.probes import watched_sets
from unlearn.rules import make_rule
from unlearn.terms import bind, row_multiples, training_sets, two_warmups
from unlearn.training import gradient_reach
from unlearn.training.learning_rate import total_steps, warmup_steps


def inspect(config: RunConfig, plan: Plan) -> list[str]:
    """Check the data and the model's files before training.

    No data are read when every run of the plan is complete.

    Returns:
        Warnings: the run is possible, but perhaps not as intended.

    Raises:
        UserError: the run is impossible with this data or model.
    """
    if all(is_complete(run) for run in plan.runs):
        return _on_the_way(plan)
    warnings = [*_rows(plan), *_tokens(config, plan)]
    _gradients(config)
    return [*warnings, *_steps(plan)]


def _on_the_way(plan: Plan) -> list[str]:
    """Return warnings where a complete run has not saved or measured on its way what it is asked for."""
    run = plan.main
    config = run.job.config
    if not config.method.makes_model:
        return []
    again = "with another root, or once its folder is removed, it is made with them"
    warnings = []
    every = config.checkpoint.models_every
    if every is not None and not run.rundir.models.is_dir():
        warnings.append(
            f"checkpoint.models_every={every}: the run is complete and saved no models on its way; {again}"
        )
    asked, made = config.eval.every_steps, read_stored(run.rundir)["eval"].get("every_steps")
    if asked is not None and asked != made:
        warnings.append(
            f"eval.every_steps={asked}: the run is complete, and was made with "
            f"{'none' if made is None else made}; {again}"
        )
    return warnings


def _rows(plan: Plan) -> list[str]:
    """Check all rows of the sets that the plan's runs read: columns, types, overlap of forget and retain set.

    A dry run may have no access to the hub: there an unavailable dataset is a warning.
    """
    warnings: list[str] = []
    read = []
    compared: dict[str, list[Example]] = {}
    for run in reversed(plan.runs):  # the main run first: its keys are those that the user set
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
        if run is plan.main:
            compared = sets
        elif run.role == "build the retain model":
            check_retain_model(config.dataset, sets.get("full", []), compared)
        check_companions(config, sets)
        if config.probe.on and config.probe.method is not None:
            check_companions(config.model_copy(update={"method": config.probe.method}), sets)
        warnings += overlaps(config.dataset, sets) + texts_without_questions(config, sets)
        scored = {name: sets[name][: config.eval.limit] for name in evaluation_sets(config) & sets.keys()}
        for benchmark in config.eval.benchmarks:
            requests_of(benchmark, scored, benchmark_options(config, benchmark))
    return list(dict.fromkeys(warnings))


def _tokens(config: RunConfig, plan: Plan) -> list[str]:
    """Check tokenizer and prompt format, and token ids and lengths against vocabulary and positions."""
    return inspect_models(config, plan)


def _gradients(config: RunConfig) -> None:
    """Check that a term's gradient reaches all parameters that the configuration selects for training.

    Raises:
        ConfigError: parameters without a gradient, by the key that selects them.
    """
    method, lora = config.method, config.model.lora
    if not gradient_reach.chosen(method, lora):
        return
    try:
        model = models.trainable_skeleton(config.model, method)
    except UserError:
        raise
    except Exception:  # remote code may need the weights
        return
    if model is None:  # checked again when the weights are loaded
        return
    problems = gradient_reach.problems(model, method, lora, models.resolve_layers(bind(method), config.model))
    if problems:
        raise ConfigError(problems)


def _steps(plan: Plan) -> list[str]:
    """Check the warm-up of each run of the plan, and the steps that are measured.

    Returns:
        Warnings: a rule that never starts, and steps to be measured that never come.

    Raises:
        UserError: the warm-up leaves no step at the peak rate, or the chosen step never comes; the message
            has both numbers of steps.
    """
    warnings = []
    for run in plan.runs:
        method = run.job.config.method
        if is_complete(run) or not method.sets or run.rundir.model.is_dir():
            continue
        key = _KEYS.get(run.role, "method")
        if len(method.warmup) > 1:
            raise UserError(two_warmups(method, key))
        per_epoch = cache(partial(_steps_per_epoch, run.job.config))  # reads the data
        if any(method.warmup.values()) and "warmup_share" not in method.warmup:
            by_epoch = 1 if _counts_steps(method) else per_epoch()
            if by_epoch is not None:
                warmup_steps(method, by_epoch, key)
        warnings += _idle_rule(method)
        if run is plan.main:
            warnings += measured_steps(run.job.config, per_epoch)
    return list(dict.fromkeys(warnings))


def measured_steps(config: RunConfig, per_epoch: Callable[[], int | None]) -> list[str]:
    """Warn where the training ends before a step is measured; `per_epoch` gives the steps of an epoch.

    With `eval.select.rule=last` nothing need be measured before the end.

    Raises:
        UserError: the training ends before the step that is to be chosen.
    """
    method, select, every = config.method, config.eval.select, config.eval.every_steps
    if every is None or select.rule == "last":
        return []
    by_epoch = 1 if method.steps is not None else per_epoch()
    if by_epoch is None:
        return []
    total = total_steps(method, by_epoch)
    if select.rule == "fixed" and select.step is not None and select.step > total:
        raise UserError(
            f"eval.select.step={select.step}: the training has {total} steps; choose one of them, or train "
            "longer"
        )
    if every <= total:
        return []
    lost = "nothing is measured on the way" if select.rule is None else "there is only the last to choose"
    return [f"eval.every_steps={every}: the training has {total} steps, so that {lost}; lower it"]


def _counts_steps(method: MethodConfig) -> bool:
    """Return whether the lengths of training and warm-up are known without the data."""
    return method.steps is not None and "warmup_epochs" not in method.warmup


def _steps_per_epoch(config: RunConfig) -> int | None:
    schedule = schedule_of(config)
    return None if schedule is None else schedule.steps_per_epoch


def schedule_of(config: RunConfig) -> Schedule | None:
    """Return the schedule of the training set that sets the epochs; None where the data cannot be read."""
    method, anchor = config.method, config.method.sets[0]
    try:
        examples = load_sets(config.dataset, [anchor]).get(anchor)
    except UserError:
        return None
    if not examples:
        return None
    if any(example.question is None for example in examples):  # plain texts are split into chunks
        tokenizer = load_tokenizer(config.model)
        encoder = make_encoder(config.model, tokenizer, config.dataset.max_length, limits(config.model))
        examples = encoder.chunks(examples)
    multiple = row_multiples(method, bind(method)).get(anchor, 1)
    return Schedule({anchor: len(examples) * multiple}, anchor, method.batch, config.seed)


def _idle_rule(method: MethodConfig) -> list[str]:
    """Warn of a rule whose warm-up is as long as the training."""
    epochs = getattr(make_rule(**method.rule.model_dump()), "warmup_epochs", 0.0)
    if method.steps is not None or epochs < method.epochs:
        return []
    return [
        f"method.rule.warmup_epochs={epochs:g}: the training has {method.epochs:g} epochs, so rule "
        f"{method.rule.name} never starts; lower it, or raise method.epochs"
    ]


_KEYS = {
    "build the target": "model.finetune",
    "build the retain model": "model.finetune",
    "build the reinforced model": "method.reinforced",
    "unlearn first": "method.unlearned.keys",
}
"""The key that configures the method of a prerequisite run, by the run's role in the plan."""
