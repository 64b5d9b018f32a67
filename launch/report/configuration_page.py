"""Write docs/configuration.md from the schema and the options of all plug-ins: `make docs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel

from launch.commands.keys import Key, keys_of, section_in
from launch.commands.plug_ins import KINDS, options_of
from launch.config_groups import CONFIGS
from launch.report import markdown
from unlearn import plugins
from unlearn.config import SLOTS, RunConfig
from unlearn.plugins import Kind
from unlearn.terms import OBJECTIVES, WEIGHTINGS, TermKeys, WeightingOptions
from unlearn.weightings._granularity import GRANULARITIES

PAGE = CONFIGS.parent / "docs" / "configuration.md"
_HEAD = """\
<!-- Made by `make docs` from unlearn/config.py and the options of all plug-ins: edit those. -->
# Configuration

Every key of a run. Any of them can be set on the command line, `key=value`, or in a YAML of your own; an
option of a group ([presets](presets.md)) sets several. `unlearn --cfg job …` prints the whole configuration
of a command. A key that does not exist is refused, with near misses. The default named here is that of the
schema; the default options of a command (`model=nano dataset=authors method=npo hardware=cpu eval=tofu
tracker=wandb`) set some keys otherwise.

`model`, `dataset`, `method` and `seed` decide the numbers and name the run's folder. `hardware` says how they
are computed, the rest what is measured and kept. *required*: an option of the group sets it. Values with
brackets, braces or spaces go in quotes: `'method.train=[*.mlp.*]'`.

A plug-in of your own has its options at the same place as those of its kind here.
"""
_TERMS = """\
## Terms

A term is `method.forget`, `method.template`, `method.retain`, `method.full`, or an item of `method.further`.
The keys here are written for `method.forget`. A name alone is short for its objective: `method.retain=kl`.
With further keys write the mapping, `'method.retain={objective: kl, mask: all}'`: keys after the short form
are refused.
"""
_OBJECTIVES = """\
### Hyper-parameters of objectives

Further keys of a term, by its objective. What they mean is in its [formula](methods.md#objectives).
"""
_WEIGHTINGS = """\
### Weightings

`method.forget.weighting`: keys of every weighting, then of each; see their [formulas](methods.md#weightings).
"""
_WEIGHTING = "method.forget.weighting."
_GROUPS = [name for name, field in RunConfig.model_fields.items() if section_in(field.annotation)]


def page() -> str:
    """Return the page as Markdown. A key's anchor is `markdown.key_anchor`; none is on the page twice."""
    table = _Tables()
    parts = [_HEAD, *_sections(table), _TERMS, table.of(keys_of(TermKeys, "method.forget.")), _OBJECTIVES]
    parts += [table.of_functions(OBJECTIVES, "method.forget."), _WEIGHTINGS, table.of(_weighting_keys())]
    parts += [table.of_functions(WEIGHTINGS, _WEIGHTING), *_plug_ins(table)]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def _sections(table: _Tables) -> Iterator[str]:
    """Yield a heading and a table for each section of the schema, those of sections below their parent."""
    plain = [key for key in keys_of(RunConfig) if "." not in key.name]
    for name, field in RunConfig.model_fields.items():
        section = section_in(field.annotation)
        if section is not None:
            yield from _section(table, name, section)
    yield "## seed, root and others"
    yield table.of(plain)


def _section(table: _Tables, name: str, section: type[BaseModel]) -> Iterator[str]:
    own = [key for key in keys_of(section, f"{name}.") if key.name.count(".") == name.count(".") + 1]
    level = "#" * (2 + name.count("."))
    yield f"{table.anchors([name])}\n\n{level} {name}\n\n{markdown.summary(section)}"
    yield table.of(own)
    for inner, field in section.model_fields.items():
        below = section_in(field.annotation)
        if below is not None:
            yield from _section(table, f"{name}.{inner}", below)


def _weighting_keys() -> list[Key]:
    name = Key("name", "text", None, "a module of unlearn.weightings, or a dotted path")
    granularity = Key("granularity", ", ".join(GRANULARITIES), '"token"', "what the weighting is computed of")
    keys = [name, granularity, *keys_of(WeightingOptions)]
    return [Key(f"{_WEIGHTING}{key.name}", key.type, key.default, key.text) for key in keys]


def _plug_ins(table: _Tables) -> Iterator[str]:
    """Yield a heading for each kind of plug-in with options of its own, and a table for each plug-in."""
    kinds = {
        "Rules": ("rule", "method.rule."),
        "Interventions": ("intervention", "method.intervention."),
        "Data sources": ("source", "dataset.options."),
        "Benchmarks": ("benchmark", "eval.benchmarks.{name}."),
        "Variants": ("variant", "eval.variants.{name}."),
        "Probes": ("probe", "probe."),
        "Trackers": ("tracker", "tracker."),
    }
    for heading, (word, above) in kinds.items():
        yield f"## {heading}"
        kind = KINDS[word].kind
        for name in kind.names():
            plug_in = kind.find(name, name)
            section = options_of(plug_in)
            documented = plug_in if word == "rule" else section
            if keys := list(keys_of(section, above.format(name=name), documented)):
                yield f"### {word} {name}\n\n{markdown.summary(plug_in)}"
                yield table.of(keys)


class _Tables:
    """Tables of keys; each key's anchor is at its first row."""

    def __init__(self) -> None:
        self._anchored: set[str] = set()

    def anchors(self, names: Iterable[str]) -> str:
        """Return the anchors of those keys that have none yet; the heading of a group is one itself."""
        new = [name for name in names if name not in self._anchored and name not in _GROUPS]
        self._anchored.update(new)
        return "".join(f'<a id="{markdown.key_anchor(name)}"></a>' for name in new)

    def of(self, keys: Iterable[Key]) -> str:
        """Return the table of keys with their descriptions."""
        rows = [(self._name(key.name), key.type, _default(key), markdown.linked(key.text)) for key in keys]
        return markdown.table(("key", "values", "default", "what it is"), rows)

    def of_functions(self, kind: Kind, prefix: str) -> str:
        """Return the table of the keyword-only parameters of all functions of a kind, by parameter."""
        uses: dict[str, list[tuple[str, Key]]] = {}
        for name in kind.names():
            function = kind.find(name, name)
            assert inspect.isfunction(function)
            for key in keys_of(plugins.keywords(function), prefix):
                uses.setdefault(key.name, []).append((name, key))
        rows = [
            (self._name(key) if not i else "", f"`{name}`", used.type, _default(used))
            for key, users in sorted(uses.items())
            for i, (name, used) in enumerate(users)
        ]
        return markdown.table(("key", f"of {kind.word}", "values", "default"), rows)

    def _name(self, name: str) -> str:
        return f"{self.anchors(_alike(name))}`{name}`"


def _alike(name: str) -> Sequence[str]:
    """Return a key and those that are the same of another term."""
    first = f"method.{SLOTS[0]}."
    return [name.replace(first, f"method.{slot}.", 1) for slot in SLOTS] if name.startswith(first) else [name]


def _default(key: Key) -> str:
    """Write a default as it is typed: text without its quotes."""
    if key.default is None:
        return "*required*"
    plain: Mapping[str, str] = {'""': "empty", "{}": "`{}`", "[]": "`[]`"}
    text = key.default[1:-1] if key.default.startswith('"') else key.default
    return plain.get(key.default, f"`{text}`")
