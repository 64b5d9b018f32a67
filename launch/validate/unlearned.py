"""Check `method.unlearned`, a method that unlearns the model which training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from launch.config_groups import groups, values_of
from launch.validate.training import preset_problems
from unlearn import plugins
from unlearn.config import MethodConfig, RunConfig
from unlearn.data.sources import before
from unlearn.errors import ConfigError, did_you_mean


def unlearned_problems(config: RunConfig) -> list[str]:
    """Return what is wrong with the method that unlearns first, and with settings that exclude it."""
    method, first = config.method, config.method.unlearned
    if first.method is None:
        return []
    name = f"method.unlearned.method={first.method}"
    if first.method not in (known := groups()["method"]):
        return [f"{name}: there is no configs/method/{first.method}.yaml{did_you_mean(first.method, known)}"]
    problems = preset_problems("method.unlearned.keys", first.method, first.keys)
    if not problems:
        problems = _first_problems(name, _parsed(first.method, first.keys))
    excluded = {
        "method.start=base": method.start == "base",
        f"method.update_scale={method.update_scale}": method.update_scale != 1,
        f"model.lora.r={config.model.lora.r}": config.model.lora.r > 0,
        "method.intervention": method.intervention is not None,
    }
    problems += [
        f"{key}: does not go with method.unlearned; leave it out" for key, set_ in excluded.items() if set_
    ]
    if not method.sets:
        problems.append(
            "method.unlearned: the method has no term to train with; set one, as method.retain=kl"
        )
    with suppress(ConfigError):  # reported by another check
        if before(config.dataset):
            problems.append(
                "method.unlearned: not for several requests in a row; set dataset.forget to a single one"
            )
    return problems


def _parsed(method: str, changed: Mapping[str, Any]) -> MethodConfig:
    keys = {**values_of("method", method), **changed}
    return plugins.parsed(MethodConfig, keys, "method.unlearned.keys", f"method {method}")


def _first_problems(name: str, first: MethodConfig) -> list[str]:
    if not first.sets or first.start == "base":
        return [f"{name}: unlearns nothing; choose a method with terms that starts from the target"]
    if first.intervention is not None:
        return [f"{name}: changes what the model computes, not its weights; choose another method"]
    if first.unlearned.method is not None:
        return [f"{name}: has itself a method that unlearns first; choose one that starts from the target"]
    return []
