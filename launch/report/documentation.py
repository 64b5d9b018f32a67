"""The documentation site: the place that describes a configuration key, and the schema's words for it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from launch.commands.keys import section_in
from launch.commands.plug_ins import KINDS, SECTIONS
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
    section: type[BaseModel] | None = RunConfig
    text = ""
    for name in key.split("."):
        if section is None:
            break
        owners = [section] if name in section.model_fields else _options(key.partition(".")[0], name)
        fields = [owner.model_fields[name] for owner in owners]
        if not fields:
            break
        section = section_in(fields[0].annotation)
        described = dict.fromkeys(field.description for field in fields if field.description)
        text = "; ".join(described) or ((section.__doc__ or "").partition("\n")[0] if section else "") or text
    return text


def _options(section: str, name: str) -> Sequence[type[BaseModel]]:
    """Return the options of those plug-ins of a section that have one of this name."""
    if section not in SECTIONS:
        return []
    kind = KINDS[section].kind
    options = [kind.find(plug_in, plug_in).Options for plug_in in kind.names()]
    return [each for each in options if name in each.model_fields]
