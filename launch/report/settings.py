"""The settings of a configuration: which ones distinguish runs, and how pages and tables write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval import variants
from eval.benchmark import find
from launch.run.config_file import key_places
from unlearn.config import PRECISION, HardwareConfig, JudgementConfig
from unlearn.errors import ConfigError
from unlearn.plugins import named_by_data

# Settings that change what is trained or measured. The seed is no setting: runs are averaged over it.
_SETTINGS = re.compile(
    r"(model|dataset|method)\..+|eval\.(limit|max_new_tokens|(judgement|select|benchmarks|variants)\..+)"
    rf"|hardware\.({'|'.join(PRECISION)})"
)
_TRAINED = "job.trained."
# TOFU's attacks change no other metric.
_NO_SETTINGS = re.compile(
    r"method\.(name|source)|model\.(trust_remote_code|attention)|model\.published\..*"
    r"|eval\.benchmarks\.tofu\.(mia|gradients)"
)


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return `{a: {b: 1}}` as `{"a.b": 1}`; an empty mapping gives no key, a list becomes a tuple."""
    settings: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            settings |= flat(value, f"{name}.")
        else:
            settings[name] = tuple(value) if isinstance(value, list) else value
    return settings


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a flat configuration that distinguish runs, without those that are null."""
    keys = [key for key in config if _SETTINGS.fullmatch(key) and not _NO_SETTINGS.fullmatch(key)]
    settings = {key: plain(config[key]) for key in keys if config[key] is not None and not _idle(key, config)}
    # The precision of the training, where that of the evaluation is another.
    trained = {key: config.get(f"{_TRAINED}{key}") for key in PRECISION}
    other = {
        key: value for key, value in trained.items() if value not in (None, config.get(f"hardware.{key}"))
    }
    return settings | {f"trained.{key}": value for key, value in other.items()}


def _idle(key: str, config: Mapping[str, Any]) -> bool:
    """Return whether a key has no effect: of `eval.select` without a rule, or where no set is divided; an
    option of a benchmark or a variant, and what of the hardware changes numbers, that has its default."""
    if key in ("hardware.optimizer", "hardware.gradients"):  # runs of before they existed have none
        return bool(config[key] == HardwareConfig.model_fields[key.removeprefix("hardware.")].default)
    for kind, plug_in in (("benchmarks", find), ("variants", variants.find)):
        if key.startswith(f"eval.{kind}."):
            return _is_default(key.removeprefix(f"eval.{kind}."), config[key], plug_in)
    if not key.startswith("eval.select."):
        return False
    whole = key == "eval.select.share" and config.get("eval.select.on") == "reported"
    return whole or config.get("eval.select.rule") is None


def _is_default(key: str, value: Any, plug_in: Callable[[str], Any]) -> bool:
    name, _, option = key.rpartition(".")
    try:
        with named_by_data():
            field = plug_in(name).Options.model_fields[option]
    except (ConfigError, KeyError):  # of another version, or of a package that is not here
        return False
    return bool(plain(value) == plain(field.default))


def judgement_of(settings: Mapping[str, Any]) -> JudgementConfig:
    """Return how a run is judged, from its flat settings; those that it lacks have their defaults."""
    known = {key: settings.get(f"eval.judgement.{key}") for key in JudgementConfig.model_fields}
    return JudgementConfig(**{key: value for key, value in known.items() if value is not None})


def plain(value: Any) -> Any:
    """Write a setting in one way: 10.0 as 10, a list as a tuple."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def shortest(keys: Sequence[str]) -> dict[str, str]:
    """Name each dotted key by the fewest last words that no other key ends with.

    An objective is named by its slot: `retain.objective` is "retain".
    """
    full = {key: key.removesuffix(".objective") for key in keys}
    names = {}
    for key, name in full.items():
        words = name.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        others = [other for other in full.values() if other != name]
        unique = (e for e in ends if not any(o == e or o.endswith(f".{e}") for o in others))
        names[key] = next(unique, key)
    return names


def split_at_keys(text: str) -> list[tuple[str, str]]:
    """Split the text of a config.yaml at its keys: its parts, each with its dotted key, `""` between keys."""
    parts, end = [], 0
    for start, stop, key in key_places(text):
        parts += [(text[end:start], ""), (text[start:stop], key)]
        end = stop
    return [*parts, (text[end:], "")]


def word(value: Any) -> str:
    """Write a setting in a label."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
