"""The documentation site: the place that describes a configuration key, and the schema's words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from launch.report.markdown import key_anchor
from unlearn.config import RunConfig

SITE = "https://unlearn-lab.github.io/unlearn-lab/"
"""The same as `Documentation` in pyproject.toml."""


def link(key: str) -> str:
    """Return the address of a key's description, `""` for what is no key of the schema (`versions.torch`)."""
    if key.partition(".")[0] not in RunConfig.model_fields:
        return ""
    return f"{SITE}configuration/#{key_anchor(key)}"


def about(key: str) -> str:
    """Return the description of a key, or of the nearest section above it that has one; else `""`."""
    section: Any = RunConfig
    text = ""
    for name in key.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            break
        owners = [section] if name in section.model_fields else _options(key.partition(".")[0], name)
        fields = [owner.model_fields[name] for owner in owners]
        if not fields:
            break
        section = fields[0].annotation
        described = dict.fromkeys(field.description for field in fields if field.description)
        text = "; ".join(described) or _summary(section) or text
    return text


def _options(section: str, name: str) -> Sequence[type[BaseModel]]:
    """Return the options of those plug-ins of a section that have one of this name."""
    from launch.commands.help import PLUG_INS  # its probes import torch

    if section not in PLUG_INS:
        return []
    kind = PLUG_INS[section]
    options = [kind.find(plug_in, plug_in).Options for plug_in in kind.names()]
    return [each for each in options if name in each.model_fields]


def _summary(section: Any) -> str:
    """Return the first line of a section's docstring."""
    is_section = isinstance(section, type) and issubclass(section, BaseModel)
    return (section.__doc__ or "").partition("\n")[0] if is_section else ""
