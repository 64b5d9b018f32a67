"""Plan the runs that a configuration needs: target, retain model, their evaluations, and the run itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval import variants
from eval.configuration import evaluation_sets, files_of
from launch.config_groups import values_of
from launch.job import Baselines, Job
from launch.run.selection import refuse_unmeasured, selection_identity
from unlearn import interventions, probes
from unlearn.config import EvalConfig, JudgementConfig, LoraConfig, MethodConfig, ProbeConfig, RunConfig
from unlearn.data import alternatives, refused_prompts
from unlearn.data.prompts import DATE
from unlearn.data.readers import content_hash
from unlearn.data.sources import BASE, available, before, identity, retain_model
from unlearn.errors import UserError
from unlearn.files import digest, folder_name
from unlearn.models import load as models
from unlearn.models.weights import WeightsSource
from unlearn.paths import is_local, user_path
from unlearn.run_dir import RunDir
from unlearn.terms import bind, needs_alternatives, training_sets

_FORMAT = 2
"""Increased when a change of the program gives the same configuration other numbers."""
_LONGEST = 50  # bytes of each of the four names in a folder's name, which can have 255


@dataclass(frozen=True)
class Planned:
    """A run with its role in the plan and its directory."""

    role: str
    job: Job
    directory: Path

    @property
    def rundir(self) -> RunDir:
        return RunDir(self.directory)

    @property
    def evaluation_key(self) -> str:
        """Hash of all settings and files that change the measurements of the same model."""
        retain = self.job.baselines.retain
        return self._evaluation_key(None if retain is None else retain.name)

    def is_measured(self, key: str) -> bool:
        """Return whether `key` is of this evaluation; it used to have the retain model's path as typed."""
        return key == self.evaluation_key or key == self._evaluation_key(self.job.baselines.retain)

    def _evaluation_key(self, retain: str | Path | None) -> str:
        config = self.job.config
        settings = config.eval.model_dump(include={"benchmarks", "variants", "max_new_tokens", "limit"})
        if config.eval.judgement != JudgementConfig():  # runs of before it could be chosen stay complete
            settings["judgement"] = config.eval.judgement.model_dump()
        if config.eval.select.divides:
            settings["share"] = config.eval.select.share
        sets = identity(config.dataset, evaluation_sets(config))
        log = self.job.baselines.log
        retain = content_hash(log) if log else retain
        if config.method.makes_model and config.model.lora.r and config.hardware.dtype != "fp32":
            settings["adapters"] = "merged"  # earlier releases measured the live ones
        asked = {"eval": settings, "sets": sets, "files": files_of(config), "retain": str(retain)}
        trained = {name: variants.settings_of(name, config) for name in config.eval.variants}
        return digest(asked | {name: own for name, own in trained.items() if own is not None})


@dataclass(frozen=True)
class Plan:
    """The runs in the order in which they must be made, the main run last."""

    runs: tuple[Planned, ...]

    @property
    def main(self) -> Planned:
        return self.runs[-1]

    def evaluation(self, role: str) -> Path | None:
        """Return the directory of the run that evaluates the target or the retain model."""
        return next((run.directory for run in self.runs if run.role == f"evaluate the {role}"), None)


def make_plan(config: RunConfig, directory: Path | None = None) -> Plan:
    """Return the plan of a checked configuration; `directory` replaces the default one of the main run."""
    runs: list[Planned] = []
    method = config.method
    base = WeightsSource(None, _key(config, None))
    if method.start == "base" and method.terms:
        refuse_unmeasured(config, Baselines())
        return Plan((_planned("run", config, base, directory=directory),))
    target = _target(config, base, runs)
    baselines = Baselines(log=user_path(config.model.retain_log) if config.model.retain_log else None)
    if (config.eval.benchmarks or config.eval.variants) and config.eval.compare:
        retain = _retain(config, runs) if baselines.log is None else None
        if retain is not None:
            runs.append(_planned("evaluate the retain model", _evaluation_of(config), retain))
            baselines = replace(baselines, retain=runs[-1].directory)
        if method.makes_model:
            runs.append(_planned("evaluate the target", _evaluation_of(config), target, baselines))
            baselines = replace(baselines, target=runs[-1].directory)
    refuse_unmeasured(config, baselines)
    for earlier in before(config.dataset) if method.makes_model else ():
        target = _unlearned(config, earlier, target, runs)
    reinforced, unlearned = _reinforced(config, target, runs), _first(config, target, runs)
    if unlearned is not None and config.eval.select.rule == "within":
        made = _planned("evaluate the unlearned model", _evaluation_of(config), unlearned, baselines)
        runs.append(made)
        baselines = replace(baselines, unlearned=made.directory)
    runs.append(_planned("run", config, target, baselines, reinforced, unlearned, directory))
    return Plan(tuple(runs))


def fingerprint(
    config: RunConfig, start: WeightsSource, reinforced: WeightsSource | None = None,
    baselines: Baselines | None = None, unlearned: WeightsSource | None = None,
) -> str:  # fmt: skip
    """Return the hash of what changes the numbers: weights, data, method, seed; not hardware, and of
    eval only what a choice among the steps depends on."""
    method = config.method
    makes = method.makes_model
    probed = config.probe.on and not makes  # of saved models, by the gradients of `probe.method`
    relevant = {"prompt", *(["lr_scale"] if makes or probed else []), *(["lora"] if makes else [])}
    excluded = {"source", "name", "forget_only", "reinforced", "unlearned", "alternatives"}
    watched: dict[str, Any] = {} if not config.probe.on else {"probe": _probe(config)}
    selected = (
        selection_identity(config, baselines or Baselines()) if makes and config.eval.select.rule else {}
    )
    if makes and config.model.lora.r and method.train is not None:
        watched["train"] = "adapters"  # earlier releases trained base weights, too
    first = {}
    if unlearned is not None:
        first = {"unlearned": [unlearned.key, method.unlearned.alpha, method.unlearned.beta]}
    return digest(
        {
            **watched,
            **selected,
            **first,
            "format": _FORMAT,
            "start": start.key,
            "reinforced": reinforced.key if reinforced else None,
            "model": _model(config, relevant),
            # Evaluated sets are part of `evaluation_key`: one more benchmark stays in the same directory.
            "data": identity(config.dataset, training_sets(config) if makes else available(config.dataset)),
            "method": method.model_dump(mode="json", exclude=excluded) if makes else None,
            "files": _files(config) if makes else None,
            "seed": config.seed if makes or probed else None,
        }
    )


def _model(config: RunConfig, relevant: set[str]) -> dict[str, Any]:
    """Return the keys of `model`, except the weights, that change the numbers; a default date is left out."""
    values = config.model.model_dump(mode="json", include=relevant)
    if values["prompt"]["date"] == DATE:
        del values["prompt"]["date"]
    return values


def _probe(config: RunConfig) -> dict[str, Any]:
    """Return the identity of the probe: a probed run writes more files, so it has another directory."""
    saved = [models.identity(config.model, str(path)) for path in probes.saved_models(config.probe.models)]
    own = config.probe.method  # of a run that trains nothing
    files = {} if own is None else {"files": _files(config.model_copy(update={"method": own}))}
    return {
        **files,
        **probes.completed(config.probe).model_dump(mode="json", exclude={"models"}),
        "models": saved,
        "data": identity(config.dataset, probes.watched_sets(config)),
    }


def _files(config: RunConfig) -> dict[str, Any]:
    """Return the identity of the files that the method reads in addition to the data."""
    method = config.method
    files: dict[str, Any] = {}
    if any(needs_alternatives(term) for term in bind(method)):
        files["alternatives"] = alternatives.identity(method.alternatives)
    if config.dataset.annotations is not None:
        files["annotations"] = content_hash(user_path(config.dataset.annotations))
    files |= refused_prompts.identity(bind(method))
    edit = {} if method.intervention is None else interventions.files(method.intervention)
    return files | {name: content_hash(user_path(file)) for name, file in edit.items()}


def needs_reinforced(method: MethodConfig) -> bool:
    """Return whether the method uses a copy of the target that is trained further on the forget set."""
    edit = method.intervention is not None and interventions.wants_reinforced(method.intervention)
    return edit or any(each.source == "reinforced" for term in bind(method) for each in term.statistics)


def _reinforced(config: RunConfig, target: WeightsSource, runs: list[Planned]) -> WeightsSource | None:
    """Plan the reinforced model of a method that needs one; return it."""
    if not needs_reinforced(config.method):
        return None
    keys = {**values_of("method", "reinforce"), **config.method.reinforced}
    made = config.model_copy(
        update={
            "method": MethodConfig.model_validate(keys),
            "eval": EvalConfig(),
            "probe": ProbeConfig(),
            "seed": 0,
            "save_model": True,
        }
    )
    run = _planned("build the reinforced model", made, target)
    runs.append(run)
    return WeightsSource(str(run.rundir.model), f"run:{run.job.fingerprint}")


def _first(config: RunConfig, target: WeightsSource, runs: list[Planned]) -> WeightsSource | None:
    """Plan the run of the method that unlearns first, where there is one; return its model."""
    first = config.method.unlearned
    if first.method is None:
        return None
    keys = {**values_of("method", first.method), **first.keys}
    made = config.model_copy(
        update={
            "method": MethodConfig.model_validate(keys),
            "eval": EvalConfig(),
            "probe": ProbeConfig(),
            "save_model": True,
        }
    )
    run = _planned("unlearn first", made, target, reinforced=_reinforced(made, target, runs))
    runs.append(run)
    return WeightsSource(str(run.rundir.model), f"run:{run.job.fingerprint}")


def _unlearned(config: RunConfig, split: str, start: WeightsSource, runs: list[Planned]) -> WeightsSource:
    """Plan the unlearning of an earlier request by the same method; return the weights for the next one."""
    made = config.model_copy(
        update={
            "dataset": config.dataset.model_copy(update={"forget": split}),
            "eval": EvalConfig(),
            "probe": ProbeConfig(),
            "save_model": True,
        }
    )
    reinforced, unlearned = _reinforced(made, start, runs), _first(made, start, runs)
    run = _planned(f"unlearn {split}", made, start, reinforced=reinforced, unlearned=unlearned)
    runs.append(run)
    return WeightsSource(str(run.rundir.model), f"run:{run.job.fingerprint}")


def finetune_config(config: RunConfig, split: str | None) -> RunConfig:
    """Return the configuration of a run that trains the base model on a split (None: all examples)."""
    keys = {**values_of("method", "finetune"), **config.model.finetune}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"lora": LoraConfig()}),
            "method": MethodConfig.model_validate(keys),
            "dataset": config.dataset.model_copy(update={"full": split}),
            "eval": EvalConfig(),
            "probe": ProbeConfig(),
            "seed": 0,
            "save_model": True,
        }
    )


def _target(config: RunConfig, base: WeightsSource, runs: list[Planned]) -> WeightsSource:
    if config.model.is_target:
        return base
    published = config.model.published.get(config.dataset.name, {}).get("target")
    if published:
        return WeightsSource(published, _key(config, published))
    return _build("target", config, config.dataset.full, runs)


def _retain(config: RunConfig, runs: list[Planned]) -> WeightsSource | None:
    """Return the retain model; None if it is not configured and cannot be built for lack of a base model."""
    known = retain_model(config.dataset)
    published = config.model.published.get(config.dataset.name, {})
    splits = (available(config.dataset).get("retain"), known)
    source = config.model.retain or next((published[s] for s in splits if s in published), None)
    if source:
        return WeightsSource(source, _key(config, source))
    if config.model.is_target or known is None:
        return None
    if known == BASE:
        return WeightsSource(None, _key(config, None))
    return _build("retain model", config, known, runs)


def _build(role: str, config: RunConfig, split: str | None, runs: list[Planned]) -> WeightsSource:
    made = finetune_config(config, split)
    run = _planned(f"build the {role}", made, WeightsSource(None, _key(made, None)))
    same = next((each for each in runs if each.job.fingerprint == run.job.fingerprint), None)
    if same is not None and same.job.config.dataset.full != split:
        raise UserError(
            f"dataset.source={config.dataset.source}: with dataset.full={split} the {role} is the same as "
            f"with dataset.full={same.job.config.dataset.full} ({same.role}); `identity` of the source must "
            "have it"
        )
    runs.append(run)
    return WeightsSource(str(run.rundir.model), f"run:{run.job.fingerprint}")


def _evaluation_of(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"method": MethodConfig(name="none"), "probe": ProbeConfig(), "seed": 0})


def _planned(
    role: str, config: RunConfig, weights: WeightsSource, baselines: Baselines | None = None,
    reinforced: WeightsSource | None = None, unlearned: WeightsSource | None = None,
    directory: Path | None = None,
) -> Planned:  # fmt: skip
    mark = fingerprint(config, weights, reinforced, baselines, unlearned)
    job = Job(config, mark, weights, baselines or Baselines(), reinforced, unlearned)
    return Planned(role, job, directory or Path(config.root) / run_name(config, mark))


def run_name(config: RunConfig, mark: str) -> str:
    """Return the folder name of a run: readable, and unique by its fingerprint."""
    split = config.dataset.full or "full" if "full" in config.method.terms else config.dataset.forget
    names = (config.method.name, config.dataset.name, _plain(split), config.model.name)
    parts = [*(folder_name(name, _LONGEST) for name in names), mark[:8]]
    return "-".join(part for part in parts if part)


def _plain(split: str | None) -> str:
    return "".join(c if c.isalnum() else "_" for c in Path(split).stem) if split else ""


def _key(config: RunConfig, source: str | None) -> str:
    path = str(user_path(source)) if source is not None and is_local(source) else source
    seed = {"seed": config.seed} if config.model.kind == "nano" and source is None else {}
    return digest({**models.identity(config.model, path), **seed})
