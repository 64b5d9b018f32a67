"""`unlearn show method=npo`: what an option does, its source, its values with their places, its papers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launch.commands import papers
from launch.commands.keys import Key, keys_of
from launch.commands.output import columns, write
from launch.commands.places import place_of, places, shown
from launch.commands.plug_ins import KINDS, Named, documentation, named, options_of
from launch.compose import checked, compose_run, force_overrides, refuse_sweep
from launch.config_groups import comment, describe, groups, option_file
from launch.report.settings import flat
from unlearn import plugins
from unlearn.arguments import Parser
from unlearn.errors import UserError, did_you_mean
from unlearn.guard import tool

_EXAMPLES = ("method=npo", "objective=simnpo", "eval=muse", "experiment=satimp-study")
_DESCRIPTION = """\
Show an option of a group: what it does, its source, all values and where each comes from, what its plug-ins
say of themselves, and the BibTeX entries of the papers behind it. Or a plug-in: objective=npo."""
_SCHEMA = "the schema's default"


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("show", _EXAMPLES, _DESCRIPTION)
    made.add_argument(
        "options", nargs="+", metavar="GROUP=OPTION", help="an option of a group, or KIND=NAME of a plug-in"
    )
    return made


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn show`."""
    lines: list[str] = []
    for argument in parser().parse_args(arguments).options:
        group, _, option = argument.partition("=")
        known = groups()
        if not option:
            raise UserError(f"{argument}: write what to show as group=option, e.g. method=npo")
        if group in known and (group not in KINDS or option in known[group]):
            lines += _option(group, option)
        elif group in KINDS:
            lines += _plug_in(group, option)
        else:
            near = did_you_mean(group, [*known, *KINDS])
            raise UserError(f"{argument}: there is no such group and no such kind of plug-in{near}")
    write(lines)


def _option(group: str, option: str) -> Iterator[str]:
    """Return the lines about an option of a group.

    Raises:
        ConfigError: there is no such option, or it cannot be composed.
    """
    overrides = force_overrides([f"{group}={option}"])
    refuse_sweep(overrides)
    composed = compose_run(overrides, hydra=True)
    whole = checked(composed, overrides, composed.hydra.runtime.choices).model_dump(mode="json")
    files = places(overrides)
    file = option_file(group, option)
    text = file.read_text(encoding="utf-8")
    plug_ins = named(group, whole.get(group, {}))
    yield f"{group}={option}"
    yield f"  {describe(group, option)}"
    facts = {"file": shown(file), "family": comment(group, option, "family")}
    if group == "method":
        facts |= _of_method(OmegaConf.to_container(composed.method))
    yield from columns((name, fact) for name, fact in facts.items() if fact)
    yield from ("", "values, and where each comes from")
    if group == "experiment":
        yield from columns(_of_experiment(file))
    else:
        yield from columns(_values(group, whole[group], plug_ins, files))
    for each in {(each.word, each.name): each for each in plug_ins}.values():
        yield from ("", f"{each.word} {each.name}, {_file(each.plug_in)}")
        yield from _indented(documentation(each.plug_in))
    yield from _papers(text)
    described = "\n".join(documentation(each.plug_in) for each in plug_ins)
    further = "further papers, which the texts above name" if papers.cited(text) else "papers"
    yield from _papers(described, further, text)


def _plug_in(word: str, name: str) -> Iterator[str]:
    """Return the lines about a plug-in.

    Raises:
        ConfigError: there is none of this name.
    """
    plug_in = KINDS[word].kind.find(name, f"{word}={name}")
    yield f"{word}={name}"
    facts = {"file": _file(plug_in), "named by": KINDS[word].key}
    if word in ("objective", "weighting"):
        facts["statistics"] = ", ".join(plugins.split(plug_in)[0])
    yield from columns(facts.items())
    yield ""
    yield from _indented(documentation(plug_in))
    options = list(keys_of(options_of(plug_in)))
    if options:
        yield from ("", "options, with their defaults")
        yield from columns((key.name, key.default or "not set", key.text or key.type) for key in options)
    yield from _papers(documentation(plug_in))


def _of_method(values: Any) -> dict[str, str]:
    from launch.report.methods_page import needs, terms  # with torch
    from unlearn.config import MethodConfig

    method = MethodConfig.model_validate(values)
    plain = [line.replace("*", "").replace("`", "") for line in terms(method)]
    return {
        "source": method.source,
        "terms": "; ".join(plain) or "none",
        "needs": ", ".join(["the forget set", *(need.replace("`", "") for need in needs(method))]),
    }


def _values(
    group: str, section: Mapping[str, Any], plug_ins: Iterable[Named], files: Mapping[str, Path]
) -> list[tuple[str, str, str]]:
    """Return key, value and place: what files set, options that plug-ins have beside it, then the rest."""
    values = flat(_numbered(section), f"{group}.")
    places_of = {key: place_of(key, files) for key in values}
    stated = [(key, _text(value), shown(file)) for key, value in values.items() if (file := places_of[key])]
    defaults = [
        _default(option, f"{each.word} {each.name}")
        for each in plug_ins
        for option in keys_of(options_of(each.plug_in), f"{each.above}.")
        if not any(f"{key}.".startswith(f"{option.name}.") for key in values)
    ]
    rest = [(key, _text(value), _SCHEMA) for key, value in values.items() if not places_of[key]]
    return [*stated, *defaults, *rest]


def _default(option: Key, owner: str) -> tuple[str, str, str]:
    if option.default is None:
        return option.name, "not set", f"{owner} needs it"
    return option.name, _text(json.loads(option.default)), f"the default of {owner}"


def _of_experiment(file: Path) -> Iterator[tuple[str, str]]:
    """Return the groups, keys and values of a sweep that an experiment's file sets."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    for each in content.pop("defaults", []):
        if isinstance(each, dict):
            yield from (
                (f"{key}".removeprefix("override ").removeprefix("/"), f"{option}")
                for key, option in each.items()
            )
    sweep = content.get("hydra", {}).get("sweeper", {}).pop("params", {})
    yield from ((key, _text(value)) for key, value in flat(content).items())
    yield from ((f"{key.lstrip('+')}, of the sweep", _text(value)) for key, value in sweep.items())


def _numbered(value: Any) -> Any:
    """Return a list of mappings as a mapping from their numbers, at any depth."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        value = {str(number): each for number, each in enumerate(value)}
    return {key: _numbered(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _file(plug_in: Any) -> str:
    return shown(Path(inspect.getfile(plug_in)))


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]


def _papers(text: str, head: str = "papers", before: str = "") -> list[str]:
    """Return a head and the BibTeX entries of the papers that a text names, without those named `before`."""
    entries = papers.bibtex(text, before)
    return ["", head, *entries.splitlines(), ""] if entries else []
