"""Explain what the schema refuses: each value with its place, the reason, and the key that may be meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from launch.config_groups import CONFIGS, option_file
from unlearn.config import RunConfig
from unlearn.errors import did_you_mean

_OTHER_NAMES = {
    "learning_rate": "method.lr", "batch_size": "method.batch", "num_epochs": "method.epochs",
    "num_train_epochs": "method.epochs", "max_steps": "method.steps", "retain_loss_type": "method.retain",
    "alpha": "method.retain_weight", "gamma": "method.forget_weight", "forget_split": "dataset.forget",
}  # fmt: skip
"""Names of Hugging Face's trainer and of OpenUnlearning."""


def explained(
    errors: Sequence[Any], given: set[str], choices: Mapping[str, Any], values: Mapping[Any, Any]
) -> list[str]:
    """Return one sentence for each value that does not fit, however many types it was tried as."""
    reasons: dict[str, list[str]] = {}
    for error in errors:
        head, reason = _explain(error, given, choices, values)
        reasons.setdefault(head, []).extend([reason] if reason else [])
    return [f"{head}: {_either(whys)}" if whys else head for head, whys in reasons.items()]


def _either(reasons: Sequence[str]) -> str:
    """Join pydantic's reasons: `input should be a valid integer or 'auto'`."""
    if len(reasons) == 1:
        return reasons[0]
    first, *others = dict.fromkeys(reason.partition(", unable to ")[0] for reason in reasons)
    return " or ".join([first, *(other.removeprefix("input should be ") for other in others)])


def _explain(
    error: Any, given: set[str], choices: Mapping[str, Any], values: Mapping[Any, Any]
) -> tuple[str, str]:
    """Return what does not fit, and the reason where the first does not say it."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        where, near = _where(key, given, choices), _near_key(path, values)
        return f"{key}={error['input']!r} ({where})", f"there is no such key{near}"
    if error["type"] == "missing":
        return f"{key} is not set", ""
    key, value = _value_at(error["loc"], values)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("model_type", "model_attributes_type", "dict_type") and (inside := _fields(path)):
        message = f"it is a section: set a key of it, as {key}.{inside[0]}=…, or leave it out"
    elif error["type"] == "list_type" and isinstance(value, str):
        message = f"give a list, as '{key}=[{value}]'"
    return f"{key}={value!r} ({_where(key, given, choices)})", message[0].lower() + message[1:]


def _near_key(path: Sequence[str], values: Mapping[Any, Any]) -> str:
    """Suggest a key for one that does not exist, of its section or with the same name elsewhere."""
    name, known = path[-1], _fields(path[:-1])
    key, sections = ".".join(path), sorted(_fields([]), key=lambda section: section != "method")
    places = {section: _leaves(values.get(section), section) for section in sections}
    fields = {section: {field: f"{section}.{field}" for field in _fields([section])} for section in sections}
    inside = {
        each: place for each, place in places.get(path[0], {}).items() if len(path) > 1 and place != key
    }
    if name in inside:
        return f" (did you mean {inside[name]}?)"
    every = [own[name] for own in (*places.values(), *fields.values()) if name in own]
    other = _OTHER_NAMES.get(name) if key in (name, f"method.{name}") else None
    other = other or next((place for place in every if place != key), None)
    if other is not None and name not in known:
        return f" (did you mean {other}?)"
    return did_you_mean(name, known, inside)


def _value_at(loc: Sequence[str | int], values: Any) -> tuple[str, Any]:
    """Return the key of an error and its value, without what pydantic appends: the type it was tried as."""
    path: list[str] = []
    for part in loc:
        inside = (
            part in values if isinstance(values, dict) else isinstance(values, list) and part != str(part)
        )
        if not inside:
            break
        values = values[part]
        path.append(str(part))
    return ".".join(path), values


def _where(key: str, given: set[str], choices: Mapping[str, Any]) -> str:
    own = {name for name in given if name not in choices}  # a choice of an option says nothing of its keys
    if any(key == g or key.startswith(f"{g}.") or g.startswith(f"{key}.") for g in own):
        return "command line"
    group = key.split(".")[0]
    file = option_file(group, choices[group]) if group in choices else CONFIGS / "config.yaml"
    return str(file if not file.is_relative_to(CONFIGS) else Path("configs") / file.relative_to(CONFIGS))


def _leaves(values: Any, path: str) -> dict[str, str]:
    """Return the names of keys below a part of the configuration, each with its first dotted path."""
    paths: dict[str, str] = {}
    for name, value in values.items() if isinstance(values, dict) else ():
        inner = _leaves(value, f"{path}.{name}") if isinstance(value, dict) else {str(name): f"{path}.{name}"}
        paths = {**inner, **paths}
    return paths


def _fields(path: Sequence[str]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return list(model.model_fields)
