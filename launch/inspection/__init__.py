"""What the configuration alone cannot show: rows, tokenizers and model shapes. Weights stay unread."""

from __future__ import annotations

from eval.configuration import benchmark_options, evaluation_sets, requests_of
from launch.inspection.models import inspect_models
from launch.run.ensure import is_complete
from launch.run.plan import Plan
from unlearn.config import MethodConfig, RunConfig
from unlearn.data.batching import Schedule
from unlearn.data.readers import UnavailableError
from unlearn.data.sources import load_sets
from unlearn.data.verify import check_companions, overlaps
from unlearn.errors import ConfigError, UserError
from unlearn.models import load as models
from unlearn.rules import make_rule
from unlearn.terms import bind, row_multiples, training_sets, two_warmups, watched_sets
from unlearn.training import gradient_reach
from unlearn.training.learning_rate import warmup_steps


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
    warnings = [*_rows(plan), *_tokens(config, plan)]
    _gradients(config)
    return [*warnings, *_steps(plan)]


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


def _gradients(config: RunConfig) -> None:
    """Refuse parameters that were chosen to be trained and that no term's gradient reaches.

    Raises:
        ConfigError: all of them, by the key that chooses them.
    """
    method, lora = config.method, config.model.lora
    if not gradient_reach.chosen(method, lora):
        return
    try:
        model = models.blueprint(config.model, method)
    except UserError:
        raise
    except Exception:  # the model's own code, which may not do without weights
        return
    if model is None:  # looked at again when its weights are there
        return
    found = gradient_reach.problems(model, method, lora, models.resolve_layers(bind(method), config.model))
    if found:
        raise ConfigError(found)


def _steps(plan: Plan) -> list[str]:
    """Refuse a warm-up of any run of the plan that leaves no step at the peak rate; warn of a rule that never
    gets to work.

    Raises:
        UserError: the run's steps and those of its warm-up.
    """
    warnings = []
    for run in plan.runs:
        method = run.job.config.method
        if is_complete(run) or not method.sets or run.rundir.model.is_dir():
            continue
        key = _KEYS.get(run.role, "method")
        if len(method.warmup) > 1:
            raise UserError(two_warmups(method, key))
        if any(method.warmup.values()) and "warmup_share" not in method.warmup:
            by_epoch = 1 if _is_of_steps(method) else _steps_per_epoch(run.job.config)
            if by_epoch is not None:
                warmup_steps(method, by_epoch, key)
        warnings += _idle(method)
    return list(dict.fromkeys(warnings))


def _is_of_steps(method: MethodConfig) -> bool:
    """Whether the steps of a training and of its warm-up follow without its data."""
    return method.steps is not None and "warmup_epochs" not in method.warmup


def _steps_per_epoch(config: RunConfig) -> int | None:
    """Optimizer steps of an epoch of the run's data; None where it cannot be read: told elsewhere."""
    method, anchor = config.method, config.method.sets[0]
    try:
        examples = load_sets(config.dataset, [anchor]).get(anchor)
    except UserError:
        return None
    if not examples:
        return None
    if any(example.question is None for example in examples):  # cut in pieces of so many tokens
        tokenizer = models.load_tokenizer(config.model)
        examples = models.make_encoder(config.model, tokenizer, config.dataset.max_length).chunks(examples)
    multiple = row_multiples(method, bind(method)).get(anchor, 1)
    return Schedule({anchor: len(examples) * multiple}, anchor, method.batch, config.seed).steps_per_epoch


def _idle(method: MethodConfig) -> list[str]:
    """A rule whose own warm-up is as long as the training."""
    epochs = getattr(make_rule(**method.rule.model_dump()), "warmup_epochs", 0.0)
    if method.steps is not None or epochs < method.epochs:
        return []
    return [
        f"method.rule.warmup_epochs={epochs:g}: the training has {method.epochs:g} epochs, so that rule "
        f"{method.rule.name} never gets to work; give fewer, or more method.epochs"
    ]


_KEYS = {
    "build the target": "model.finetune",
    "build the retain model": "model.finetune",
    "build the reinforced model": "method.reinforced",
}
"""Where the method of a run that another one needs stands in the configuration, by its part in the plan."""
