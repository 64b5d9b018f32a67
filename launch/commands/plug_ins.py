"""The kinds of plug-ins: where a configuration names one, what it says of itself, its options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from unlearn import plugins
from unlearn.config import SLOTS, Section


@dataclass(frozen=True)
class KindEntry:
    """A kind of plug-in: the module and name of its `plugins.Kind`, the key that names such a plug-in."""

    module: str
    name: str
    key: str

    @property
    def kind(self) -> plugins.Kind:
        found: plugins.Kind = getattr(import_module(self.module), self.name)
        return found


KINDS: Mapping[str, KindEntry] = {
    "objective": KindEntry("unlearn.terms", "OBJECTIVES", "method.forget.objective"),
    "weighting": KindEntry("unlearn.terms", "WEIGHTINGS", "method.forget.weighting"),
    "rule": KindEntry("unlearn.rules", "RULES", "method.rule.name"),
    "intervention": KindEntry("unlearn.interventions", "INTERVENTIONS", "method.intervention.name"),
    "source": KindEntry("unlearn.data.sources", "SOURCES", "dataset.source"),
    "benchmark": KindEntry("eval.benchmark", "BENCHMARKS", "eval.benchmarks"),
    "variant": KindEntry("eval.variants", "VARIANTS", "eval.variants"),
    "probe": KindEntry("unlearn.probes", "PROBES", "probe.name"),
    "tracker": KindEntry("launch.tracking.trackers", "TRACKERS", "tracker.name"),
}
"""By the word for them."""
SECTIONS = ("probe", "tracker")
"""Kinds whose options are further keys of the section of that name."""


@dataclass(frozen=True)
class Named:
    """A plug-in that a configuration names: its kind and name, and the dotted key above its options."""

    word: str
    name: str
    above: str

    @property
    def plug_in(self) -> Any:
        """
        Raises:
            ConfigError: there is none of that name.
        """
        return KINDS[self.word].kind.find(self.name, f"{self.above}={self.name}")


def named(group: str, section: Mapping[str, Any]) -> list[Named]:
    """Return the plug-ins that a section of a configuration names, in the order of its keys."""
    return list(dict.fromkeys(_named(group, section)))


def options_of(plug_in: Any) -> type[BaseModel]:
    """Return the model of a plug-in's options."""
    if inspect.ismodule(plug_in) or hasattr(plug_in, "Options"):
        model: type[BaseModel] = getattr(plug_in, "Options", Section)
        return model
    return plugins.keywords(plug_in)


def line(plug_in: Any) -> str:
    """Return the first paragraph of a plug-in's docstring, in one line.

    It is the module's for one of the project's, and its own for one of yours, which may share a file.
    """
    module = inspect.getmodule(plug_in)
    shipped = module is not None and module.__name__.partition(".")[0] in ("unlearn", "eval", "launch")
    text = (not shipped and plug_in.__doc__) or (module and module.__doc__) or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def documentation(plug_in: Any) -> str:
    """Return the docstring of a plug-in's module, and that of its function or class."""
    module = inspect.getmodule(plug_in)
    return "\n\n".join(text for each in dict.fromkeys((module, plug_in)) if (text := inspect.getdoc(each)))


def _named(group: str, section: Mapping[str, Any]) -> Iterator[Named]:
    if group == "method":
        yield from _of_method(section)
    elif group == "dataset":
        yield Named("source", section["source"], "dataset.options")
    elif group == "eval":
        for word, key in (("benchmark", "benchmarks"), ("variant", "variants")):
            yield from (Named(word, name, f"eval.{key}.{name}") for name in section[key])
    elif group in ("probe", "tracker") and section["name"] != "none":
        yield Named(group, section["name"], group)


def _of_method(section: Mapping[str, Any]) -> Iterator[Named]:
    terms = {f"method.{slot}": section[slot] for slot in SLOTS if section[slot]}
    terms |= {f"method.further.{number}": term for number, term in enumerate(section["further"])}
    for key, term in terms.items():
        yield Named("objective", term["objective"], key)
        weighting = term.get("weighting")
        if weighting:
            name = weighting if isinstance(weighting, str) else weighting["name"]
            yield Named("weighting", name, f"{key}.weighting")
    yield Named("rule", section["rule"]["name"], "method.rule")
    if section["intervention"]:
        yield Named("intervention", section["intervention"]["name"], "method.intervention")
