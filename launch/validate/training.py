"""Check the dataset, the method and the probe of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from launch.config_groups import values_of
from unlearn import plugins, probes
from unlearn.config import MethodConfig, ProbeConfig, RunConfig
from unlearn.data import alternatives, refused_prompts, sources
from unlearn.data.sources import available
from unlearn.data.templates import lacking
from unlearn.errors import ConfigError
from unlearn.paths import file_problem

if TYPE_CHECKING:
    from unlearn.terms import Term


def dataset_problems(config: RunConfig) -> list[str]:
    """Return what is wrong with the dataset, and which sets the method trains on that it does not have."""
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


def method_problems(config: RunConfig) -> list[str]:
    """Return what is wrong with the method: its terms, and combinations of its keys with others."""
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
    if method.update_scale != 1 and method.smooth.name == "average":
        problems.append(
            f"method.smooth.name=average: method.update_scale={method.update_scale} scales the last step's "
            "weights, not their mean over steps; leave one of the two out"
        )
    if method.update_scale != 1 and config.eval.every_steps is not None:
        problems.append(
            f"eval.every_steps={config.eval.every_steps}: with method.update_scale={method.update_scale} the "
            "model that is measured on the way is not the one that is saved; leave eval.every_steps out"
        )
    smooth = method.smooth.name
    if smooth in ("penalty", "curvature") and config.hardware.dtype == "bf16":
        problems.append(
            f"method.smooth.name={smooth}: takes differences of gradients at near weights, which rounding to "
            "hardware.dtype=bf16 drowns; set hardware.dtype=fp32"
        )
    if any(not 0 <= beta < 1 for beta in method.betas):
        problems.append(f"method.betas={list(method.betas)}: both must be in [0, 1)")
    problems += _retain(config, terms)
    if any(needs_alternatives(term) for term in terms):
        problems += alternatives.check(method.alternatives)
        prompt = method.alternatives.prompt
        if prompt is not None and (problem := lacking(prompt, "question")):
            problems.append(f"method.alternatives.prompt={prompt!r} {problem}")
    problems += refused_prompts.check(terms)
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


def preset_problems(key: str, option: str, changed: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a preset and changed keys, which build a model that the run starts from."""
    from unlearn.terms import bind

    try:
        keys = {**values_of("method", option), **changed}
        method = plugins.parsed(MethodConfig, keys, key, f"method {option}")
    except ConfigError as error:
        return error.problems
    try:
        bind(method)
    except ConfigError as error:
        return [f"{key}.{problem.removeprefix('method.')}" for problem in error.problems]
    return []


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
        return [f"method.intervention is not set: a term uses gates; set {hint}"] if gated else []

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


def probe_problems(config: RunConfig) -> list[str]:
    """Return what is wrong with the probe, and with the method and models it measures at `method=none`."""
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
        problems += [f"probe.{problem}" for problem in (*method_problems(probed), *dataset_problems(probed))]
        if not problems:
            problems += _unsaved(probe.method, probe.name)
    problems += [
        f"probe.models: {pattern} matches no folder with a model or an adapter (no config.json)"
        for pattern in probe.models
        if not probes.saved_models([pattern])
    ]
    return problems


def _unsaved(method: MethodConfig, probe: str) -> list[str]:
    """Refuse methods that need more than a saved model holds."""
    from unlearn.rules import make_rule
    from unlearn.terms import bind

    sources = {each.source for term in bind(method) for each in term.statistics}
    rule = make_rule(**method.rule.model_dump())
    unsaved = {
        "an intervention": method.intervention is not None,
        "a reinforced model": "reinforced" in sources,
        "a running average of the weights": "teacher" in sources,
        "a model that was unlearned first": method.unlearned.method is not None,
        f"the state of rule {method.rule.name}": bool(rule.state()) or getattr(rule, "keeps", False),
    }
    return [
        f"probe.method: {method.name} uses {what}, which saved models do not have; measure it while it "
        f"trains: method={method.name} probe.name={probe}"
        for what, needed in unsaved.items()
        if needed
    ]
