"""README.md of a saved model: a model card for the hub, from the files of its run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eval.judgement.judge import with_judgement
from eval.metric_catalog import shown
from launch.commands.plug_ins import KINDS, named
from launch.job import Baselines, Job
from launch.redact import scrubbed
from launch.report import markdown
from launch.report.results_table import LEGEND, arrow, format_value
from launch.report.selection_section import selection_sentences
from launch.run.config_file import read_job, read_stored, trained_with
from launch.tracking.run_names import WANTED
from unlearn.config import RunConfig
from unlearn.data.sources import available
from unlearn.files import replacing
from unlearn.interventions import is_edited
from unlearn.paths import below_home, is_local, repository_problem, user_path
from unlearn.run_dir import RunDir
from unlearn.terms import training_sets

TEMPLATE = Path(__file__).parent / "templates" / "model-card.md.j2"
_LICENCE = ("license", "license_name", "license_link")
_PACKAGES = ("unlearn-lab", "torch", "transformers", "deepspeed")


def write_cards(rundir: RunDir, results: Mapping[str, float | None]) -> None:
    """Write README.md into each saved model of a run, and into its adapter.

    The same files of a run give the same text. Secrets and the home directory are not in it.
    """
    folders = {folder: "" for folder in (rundir.model, rundir.adapter) if folder.is_dir()}
    folders |= {folder: folder.name.removeprefix("step-") for folder in rundir.models.glob("step-*")}
    if not folders:
        return
    stored, (job, role) = read_stored(rundir), read_job(rundir)
    chosen = " ".join(selection_sentences(rundir.read_selection()))
    rows = {str(row["step"]): row for row in rundir.history_by_step()}
    for folder, step in folders.items():
        measured = rows.get(step, {}) if step else results
        text = scrubbed(f"{_card(folder, step, job, role, stored, measured, chosen)}\n")
        with replacing(folder / "README.md") as temporary:
            temporary.write_text(text, encoding="utf-8")


def _card(
    folder: Path, step: str, job: Job, role: str, stored: Mapping[str, Any],
    measured: Mapping[str, float | None], chosen: str,
) -> ModelCard:  # fmt: skip
    config, adapter = job.config, folder.name == "adapter"
    method, base = config.method, _hub_base(job)
    known = _front_matter(job)
    licence = {key: value for key in _LICENCE if (value := known.get(key))}
    unlearns = method.start == "target"
    packages = (*_PACKAGES, "peft") if config.model.lora.r else _PACKAGES
    command = stored.get("command")
    return ModelCard.from_template(
        ModelCardData(
            base_model=base or known.get("base_model"),
            base_model_relation=("adapter" if adapter else "finetune") if base else None,
            datasets=[name] if (name := config.dataset.path) and _is_hub_id(name) else None,
            library_name="peft" if adapter else "transformers",
            pipeline_tag="text-generation",
            tags=[*(["unlearning"] if unlearns else []), method.name, config.dataset.name, "unlearn-lab"],
            model_name=config.model.name,
            eval_results=_index(config, measured),
            **licence,
        ),
        template_path=str(TEMPLATE),
        title=f"{config.model.name}: {method.name} on {config.dataset.name}"
        + (f", step {step}" if step else ""),
        what=_what(job, folder, unlearns=unlearns, adapter=adapter),
        facts=markdown.table(("", ""), _facts(job)),
        results=_results(job.baselines, measured, config),
        measured=_measured_on(config),
        chosen=_of_step(chosen, config) if step else chosen,
        legend=LEGEND.replace("   ", " · "),
        step=step,
        part="" if role == WANTED else role,
        source=markdown.linked(method.source),
        own=", ".join(f"`{name}`" for name in _own_code(config)),
        values=_values(config, trained_with(stored)),
        command=None if command is None else shlex.join(["unlearn", *command]),
        versions=", ".join(f"{name} {stored['versions'][name]}" for name in packages),
        licence=_licence(config, base, licence),
    )


def _what(job: Job, folder: Path, *, unlearns: bool, adapter: bool) -> str:
    method = job.config.method.name
    kind = "A LoRA adapter in PEFT's format" if adapter else "A causal language model"
    made = (
        f"after unlearning with the method `{method}`" if unlearns else f"trained with the method `{method}`"
    )
    text = f"{kind}, {made}, made with Unlearn Lab."
    if adapter:
        text += (
            " `PeftModel.from_pretrained(base, this)` adds it to its base model; Unlearn Lab takes it as "
            "`model.path`."
        )
        if job.start.source is not None and not _is_hub_id(job.start.source):
            text += (
                " Its base is a local model: publish that one too, and put its id in place of the path that "
                "adapter_config.json has as `base_model_name_or_path`."
            )
    if is_edited(folder):
        text += (
            " What it computes is edited (interventions.json): load it with Unlearn Lab, `model=local "
            "model.path=DIR`; other programs load the weights without the edit."
        )
    return text


def _facts(job: Job) -> list[tuple[str, str]]:
    config, start = job.config, job.start.source
    sets, lora = available(config.dataset), config.model.lora
    used = training_sets(config)
    stated = {"forget": config.dataset.forget, "retain": config.dataset.retain, "full": config.dataset.full}
    splits = [
        (f"{name} set", f"`{stated.get(name) or split}`") for name, split in sets.items() if name in used
    ]
    if lora.r:
        splits.append(
            ("adapters", f"LoRA, r {lora.r}, alpha {lora.alpha}, on {markdown.written(lora.targets)}")
        )
    return [
        ("base model", _base_model(config)),
        ("training starts from", "the base model" if start is None else _model(start)),
        *_unlearned_first(config),
        ("method", f"`{config.method.name}`"),
        ("data", _dataset(config)),
        *splits,
        ("seed", str(config.seed)),
    ]


def _unlearned_first(config: RunConfig) -> list[tuple[str, str]]:
    first = config.method.unlearned
    if first.method is None:
        return []
    return [
        (
            "unlearned first by",
            f"`{first.method}`; then all weights were shrunk by a share of {first.alpha:g}, with "
            f"{first.beta:g} of noise in its place",
        )
    ]


def _base_model(config: RunConfig) -> str:
    model = config.model
    if model.kind == "nano":
        size = model.nano
        return f"a Llama of {size.layers} layers and width {size.hidden_size} with random weights"
    if model.kind == "gguf":
        return f"the weights in the Python package `{model.path}`"
    return _model(str(model.path)) + (f", revision `{model.revision}`" if model.revision else "")


def _model(name: str) -> str:
    """Link a model of the hub; name a folder by the end of its path."""
    if _is_hub_id(name):
        return f"[{name}](https://huggingface.co/{name})"
    parts = Path(below_home(str(user_path(name).absolute()))).parts
    return f"`{'/'.join(parts[-2:])}`"


def _dataset(config: RunConfig) -> str:
    path = config.dataset.path
    if not _is_hub_id(path):
        return f"`{config.dataset.name}`"
    return f"[{path}](https://huggingface.co/datasets/{path})"


def _results(baselines: Baselines, measured: Mapping[str, float | None], config: RunConfig) -> str:
    columns: dict[str, Mapping[str, float | None]] = {
        name: RunDir(folder).read_results()
        for name, folder in (("target", baselines.target), ("retain model", baselines.retain))
        if folder is not None
    }
    columns = dict(with_judgement({**columns, "this model": measured}, config=config.eval.judgement))
    keys = shown(measured)
    if not keys:
        return ""
    rows = [
        (f"`{key}`", *(format_value(column.get(key)) for column in columns.values()), arrow(key))
        for key in keys
    ]
    return markdown.table(("metric", *columns, "better"), rows)


def _index(config: RunConfig, measured: Mapping[str, float | None]) -> list[EvalResult] | None:
    """Return the headline metrics for the hub's table of results; None without any."""
    data = config.dataset.name
    known = {key: value for key in shown(measured) if (value := measured.get(key)) is not None}
    return [
        EvalResult("text-generation", data, data, metric_type=key, metric_value=value)
        for key, value in known.items()
    ] or None


def _measured_on(config: RunConfig) -> str:
    """Say where an evaluation was cut short; "" for a whole one."""
    rows = {"dataset.limit": config.dataset.limit, "eval.limit": config.eval.limit}
    parts = [f"on {rows} examples of each set ({key})" for key, rows in rows.items() if rows]
    if config.eval.max_new_tokens:
        parts.append(f"with answers of at most {config.eval.max_new_tokens} tokens (eval.max_new_tokens)")
    return f"Measured {', '.join(parts)}: not comparable with a whole evaluation." if parts else ""


def _of_step(chosen: str, config: RunConfig) -> str:
    """Say what the metrics of a single step are of, where a run chooses among its steps."""
    select = config.eval.select
    return "Measured on the run's selection examples only." if chosen and select.divides else ""


def _own_code(config: RunConfig) -> list[str]:
    """Return the plug-ins of the method that do not ship with Unlearn Lab."""
    plug_ins = named("method", config.method.model_dump(mode="json"))
    return [each.name for each in plug_ins if each.name not in KINDS[each.word].kind.names()]


def _values(config: RunConfig, trained: Mapping[str, Any]) -> str:
    """Write every value that changes the weights; `trained`: the precision of the training."""
    model = {
        "path",
        "revision",
        "base",
        "prompt",
        "lr_scale",
        "lora",
        *(["nano", "finetune"] * (config.model.kind == "nano")),
    }
    values = {
        "method": config.method.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json", include=model),
        "dataset": config.dataset.model_dump(mode="json"),
        "hardware": {"dtype": trained.get("dtype", config.hardware.dtype)},
        "seed": config.seed,
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _licence(config: RunConfig, base: str | None, known: Mapping[str, Any]) -> str:
    if known:
        named = known.get("license_name") or known.get("license")
        return f"That of the base model: {named}. The terms of the data apply as well."
    if config.model.kind == "nano":
        return "The base model has random weights and no licence; the terms of the data apply."
    source = f"[{base}](https://huggingface.co/{base})" if base else "the base model"
    return (
        f"The licence of {source} applies to this model, and so do the terms of the data. Name it in the "
        "block above (`license`) before publishing."
    )


def _hub_base(job: Job) -> str | None:
    """Return the hub id of what training starts from, or else of the base model; None where there is none."""
    path = job.config.model.path if job.config.model.kind == "hf" else None
    return next((name for name in (job.start.source, path) if _is_hub_id(name)), None)


def _front_matter(job: Job) -> dict[str, Any]:
    """Return what the README.md of the folder that training starts from says of itself; {} without one."""
    path = job.start.source or job.config.model.path
    file = user_path(path or "") / "README.md"
    if path is None or not is_local(path) or not file.is_file():
        return {}
    try:
        return dict(ModelCard.load(file).data.to_dict())
    except (OSError, ValueError, yaml.YAMLError):  # another program's file
        return {}


def _is_hub_id(name: str | None) -> bool:
    return name is not None and not is_local(name) and repository_problem(name) is None
