"""What a run needs, as runs: its target, its retain model, their evaluations, and itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.benchmark import find, is_live, options_of
from eval.configuration import benchmark_options, evaluation_sets
from launch.compose import yaml_of_defaults
from launch.job import Baselines, Job
from launch.validate import is_local
from unlearn import interventions, probes
from unlearn.config import EvalConfig, LoraConfig, MethodConfig, ProbeConfig, RunConfig
from unlearn.data import alternatives
from unlearn.data.prompts import DATE
from unlearn.data.readers import content_hash
from unlearn.data.sources import BASE, available, before, identity, retain_model
from unlearn.files import digest, folder_name
from unlearn.models import load as models
from unlearn.models.weights import Weights
from unlearn.paths import user_path
from unlearn.run_dir import RunDir
from unlearn.terms import bind, needs_alternatives, training_sets, watched_sets

_FORMAT = 2
"""Counted up when the same configuration begins to give other numbers."""
_LONGEST = 50  # bytes of each of the four names in a folder's name, which can have 255


@dataclass(frozen=True)
class Planned:
    """A run with its part in the plan and its directory."""

    role: str
    job: Job
    directory: Path

    @property
    def rundir(self) -> RunDir:
        return RunDir(self.directory)

    @property
    def evaluation_key(self) -> str:
        """Changes when the same model would be measured in another way."""
        config = self.job.config
        wanted = config.eval.model_dump(include={"benchmarks", "variants", "max_new_tokens", "limit"})
        sets = identity(config.dataset, evaluation_sets(config))
        files = {name: found for name in config.eval.benchmarks if (found := _files_of(config, name))}
        baselines = self.job.baselines
        retain = content_hash(baselines.log) if baselines.log else baselines.retain
        return digest({"eval": wanted, "sets": sets, "files": files, "retain": str(retain)})


def _files_of(config: RunConfig, benchmark: str) -> Any:
    """What determines a benchmark's questions beside its options and the dataset."""
    module = find(benchmark)
    if not is_live(module):
        return None
    return module.identity(options_of(module, benchmark_options(config, benchmark), benchmark))


@dataclass(frozen=True)
class Plan:
    """The runs in the order they must be made, the wanted one last."""

    runs: tuple[Planned, ...]

    @property
    def main(self) -> Planned:
        return self.runs[-1]

    def evaluation(self, role: str) -> Path | None:
        """Directory of the run that evaluates the target or the retain model."""
        return next((run.directory for run in self.runs if run.role == f"evaluate the {role}"), None)


def make_plan(config: RunConfig, directory: Path | None = None) -> Plan:
    """The plan of a checked configuration; `directory` replaces the main run's own."""
    runs: list[Planned] = []
    method = config.method
    base = Weights(None, _key(config, None))
    if method.start == "base" and method.terms:
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
    for earlier in before(config.dataset):
        target = _unlearned(config, earlier, target, runs)
    reinforced = _reinforced(config, target, runs) if needs_reinforced(method) else None
    runs.append(_planned("run", config, target, baselines, reinforced, directory))
    return Plan(tuple(runs))


def fingerprint(config: RunConfig, start: Weights, reinforced: Weights | None = None) -> str:
    """Hash of all that changes the numbers: weights, data, method, seed; not hardware, eval or tracker."""
    method = config.method
    makes = method.makes_model
    relevant = {"prompt", "lora", "lr_scale"} if makes else {"prompt"}
    apart = {"source", "name", "forget_only", "reinforced", "alternatives"}
    watched = {} if not config.probe.on else {"probe": _probe(config)}
    return digest(
        {
            **watched,
            "format": _FORMAT,
            "start": start.key,
            "reinforced": reinforced.key if reinforced else None,
            "model": _model(config, relevant),
            # Which sets are evaluated is in `evaluation_key`: one more benchmark stays in the same directory.
            "data": identity(config.dataset, training_sets(config) if makes else available(config.dataset)),
            "method": method.model_dump(mode="json", exclude=apart) if makes else None,
            "files": _files(config) if makes else None,
            "seed": config.seed if makes else None,
        }
    )


def _model(config: RunConfig, relevant: set[str]) -> dict[str, Any]:
    """What of `model` beside the weights changes the numbers; the date only where it was chosen."""
    found = config.model.model_dump(mode="json", include=relevant)
    if found["prompt"]["date"] == DATE:
        del found["prompt"]["date"]
    return found


def _probe(config: RunConfig) -> dict[str, Any]:
    """A run that is watched changes nothing, but leaves more: it has a directory of its own."""
    saved = [models.identity(config.model, str(path)) for path in probes.saved_models(config.probe.models)]
    return {
        **probes.completed(config.probe).model_dump(mode="json", exclude={"models"}),
        "models": saved,
        "data": identity(config.dataset, watched_sets(config)),
    }


def _files(config: RunConfig) -> dict[str, Any]:
    """What determines the content of files that the method reads beside the data."""
    method = config.method
    found: dict[str, Any] = {}
    if any(needs_alternatives(term) for term in bind(method)):
        found["alternatives"] = alternatives.identity(method.alternatives)
    if config.dataset.annotations is not None:
        found["annotations"] = content_hash(user_path(config.dataset.annotations))
    edit = {} if method.intervention is None else interventions.files(method.intervention)
    return found | {name: content_hash(user_path(file)) for name, file in edit.items()}


def needs_reinforced(method: MethodConfig) -> bool:
    """Whether the method works with a copy of the target trained further on the forget set."""
    edit = method.intervention is not None and interventions.wants_reinforced(method.intervention)
    return edit or any(each.source == "reinforced" for term in bind(method) for each in term.statistics)


def _reinforced(config: RunConfig, target: Weights, runs: list[Planned]) -> Weights:
    keys = {**yaml_of_defaults("method", "reinforce"), **config.method.reinforced}
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
    return Weights(str(run.rundir.model), f"run:{run.job.fingerprint}")


def _unlearned(config: RunConfig, split: str, start: Weights, runs: list[Planned]) -> Weights:
    """The model that has unlearned an earlier request by the same method: what the next one starts from."""
    made = config.model_copy(
        update={
            "dataset": config.dataset.model_copy(update={"forget": split}),
            "eval": EvalConfig(),
            "probe": ProbeConfig(),
            "save_model": True,
        }
    )
    run = _planned(f"unlearn {split}", made, start)
    runs.append(run)
    return Weights(str(run.rundir.model), f"run:{run.job.fingerprint}")


def finetune_config(config: RunConfig, split: str | None) -> RunConfig:
    """The run that trains the base model on a split (None: all there is): a target or a retain model."""
    keys = {**yaml_of_defaults("method", "finetune"), **config.model.finetune}
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


def _target(config: RunConfig, base: Weights, runs: list[Planned]) -> Weights:
    if config.model.is_target:
        return base
    published = config.model.published.get(config.dataset.name, {}).get("target")
    if published:
        return Weights(published, _key(config, published))
    return _build("target", config, config.dataset.full, runs)


def _retain(config: RunConfig, runs: list[Planned]) -> Weights | None:
    """The retain model; None when it is neither given nor can be built (the base model is not known)."""
    known = retain_model(config.dataset)
    published = config.model.published.get(config.dataset.name, {})
    splits = (available(config.dataset).get("retain"), known)
    given = config.model.retain or next((published[s] for s in splits if s in published), None)
    if given:
        return Weights(given, _key(config, given))
    if config.model.is_target or known is None:
        return None
    if known == BASE:
        return Weights(None, _key(config, None))
    return _build("retain model", config, known, runs)


def _build(role: str, config: RunConfig, split: str | None, runs: list[Planned]) -> Weights:
    made = finetune_config(config, split)
    run = _planned(f"build the {role}", made, Weights(None, _key(made, None)))
    runs.append(run)
    return Weights(str(run.rundir.model), f"run:{run.job.fingerprint}")


def _evaluation_of(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"method": MethodConfig(name="none"), "probe": ProbeConfig(), "seed": 0})


def _planned(
    role: str, config: RunConfig, weights: Weights, baselines: Baselines | None = None,
    reinforced: Weights | None = None, directory: Path | None = None,
) -> Planned:  # fmt: skip
    mark = fingerprint(config, weights, reinforced)
    job = Job(config, mark, weights, baselines or Baselines(), reinforced)
    return Planned(role, job, directory or Path(config.root) / run_name(config, mark))


def run_name(config: RunConfig, mark: str) -> str:
    """Folder name of a run: readable, and unique by its fingerprint."""
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
