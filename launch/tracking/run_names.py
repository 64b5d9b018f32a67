"""Names of a run in a dashboard: its kind, a readable title, its tags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from launch.config_groups import groups, values_of
from unlearn.config import MethodConfig, RunConfig

JobType = Literal["unlearn", "finetune", "evaluate", "probe"]
WANTED = "run"
"""The role of the run that the command asks for; runs of other roles are made because it needs them."""
_MAX_SETTINGS = 4  # in a title


def kind(config: RunConfig, role: str) -> JobType:
    """Return what the run does, W&B's job type."""
    if not config.method.makes_model:
        return "probe" if config.probe.on else "evaluate"
    return "finetune" if config.method.start == "base" or role.startswith("build ") else "unlearn"


def title(config: RunConfig, role: str) -> str:
    """Return `npo tofu forget10 nano lr=2e-05 seed 0`, or with a role `evaluate the target tofu …`."""
    method = config.method
    what = role
    if role == WANTED or role.startswith("unlearn "):
        what = method.name if method.makes_model else kind(config, role)
    about = [config.dataset.name, split(config), config.model.name]
    own = [*_changed(method), f"seed {config.seed}"] if method.makes_model and role == WANTED else []
    return " ".join(part for part in (what, *about, *own) if part)


def tags(config: RunConfig, role: str) -> list[str]:
    """Return model, dataset, split and method, and the name of a model that others are compared with."""
    reference = [name for name in ("target", "retain model") if role.endswith(f"the {name}")]
    return [config.model.name, config.dataset.name, split(config), config.method.name, *reference]


def split(config: RunConfig) -> str:
    """Return the split that is learnt, else the one to forget; without folders."""
    data = config.dataset
    name = data.full or "full" if "full" in config.method.terms else data.forget
    return Path(name).stem if name else ""


def _changed(method: MethodConfig) -> list[str]:
    """Return the settings in which a method differs from the preset of its name, as `lr=2e-05`."""
    if method.name not in groups()["method"]:
        return []
    try:
        preset = MethodConfig.model_validate(values_of("method", method.name))
    except ValidationError:  # a file of your own may leave values to the command, or refer to others
        return []
    before, now = (_flat(each.model_dump(exclude={"name", "source"})) for each in (preset, method))
    changed = [
        f"{_brief(key)}={_text(now.get(key))}"
        for key in {**before, **now}
        if before.get(key, ...) != now.get(key, ...) and not (key not in now and _replaced(key, now))
    ]
    return [*changed[:_MAX_SETTINGS], "…"] if len(changed) > _MAX_SETTINGS else changed


def _replaced(key: str, now: Mapping[str, Any]) -> bool:
    """Return whether the title already has the value of the key's whole section."""
    parent = key.rpartition(".")[0]
    return parent in now or f"{parent}.objective" in now


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _brief(key: str) -> str:
    *above, last = key.split(".")
    return above[-1] if above and last in ("objective", "name") else last


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
