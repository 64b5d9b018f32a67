"""`unlearn schema`: the configuration as JSON Schema (draft 7), with the options of plug-ins, for editors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from launch.commands.plug_ins import KINDS, options_of
from launch.compose import groups
from unlearn.arguments import Parser, path_argument
from unlearn.config import SLOTS, RunConfig
from unlearn.errors import UserError, did_you_mean
from unlearn.files import check_writable, write_json
from unlearn.guard import tool

_EXAMPLES = ("--out unlearn.schema.json", "method --out method.schema.json", "")
_DESCRIPTION = """\
Write the JSON Schema of the whole configuration, as in the config.yaml of a run, or of a file of one group,
as in configs/method or configs/experiment. Names of plug-ins that ship with the project bring their options;
any other name is a plug-in of your own, with any options."""
_EPILOG = """\
An editor with the YAML language server (VS Code: the extension redhat.vscode-yaml) then completes keys, shows
their descriptions and marks mistakes. Write as the first line of a file, with a path from it or a URL,

  # yaml-language-server: $schema=../../method.schema.json

or in the settings of VS Code, for all files of a group:

  "yaml.schemas": {"method.schema.json": "configs/method/*.yaml",
                   "experiment.schema.json": "configs/experiment/*.yaml"}"""
_ANY = {"type": "object"}
_NAME = {"type": "string", "description": "a dotted path, to a plug-in of your own"}
_OF_EVERY_TERM: Mapping[str, Any] = {
    "weighting": True,
    "mask": {"enum": ["answer", "attention", "all"]},
    "skip": {"type": "integer", "minimum": 0},
    "layer": {"type": "number", "minimum": 0},
}


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("schema", _EXAMPLES, _DESCRIPTION, _EPILOG)
    made.add_argument(
        "group", nargs="?", metavar="GROUP", help="of the files of this group; default: the whole"
    )
    made.add_argument("--out", type=path_argument, metavar="FILE", help="a file; default: standard output")
    return made


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn schema`."""
    options = parser().parse_args(arguments)
    if options.group is not None and options.group not in groups():
        near = did_you_mean(options.group, groups())
        raise UserError(f"{options.group}: there is no such group{near}")
    if options.out is not None:
        check_writable(options.out.parent, f"--out {options.out}")
    schema = whole() if options.group is None else of_group(options.group)
    if options.out is None:
        sys.stdout.write(f"{json.dumps(schema, indent=2, ensure_ascii=False)}\n")
    else:
        write_json(options.out, schema)


def whole() -> dict[str, Any]:
    """Return the schema of a complete configuration."""
    schema = RunConfig.model_json_schema()
    parts = schema["$defs"]
    _method(parts)
    _by_name(parts, "DatasetConfig", "source", "source", below="options")
    _by_name(parts, "ProbeConfig", "name", "probe")
    _by_name(parts, "TrackerConfig", "name", "tracker")
    _by_key(parts, "EvalConfig", "benchmarks", "benchmark")
    _by_key(parts, "EvalConfig", "variants", "variant")
    parts["ProbeConfig"]["properties"]["method"]["anyOf"].append(_one_of(groups()["method"]))
    # What a pattern or a number may also be, and null.
    parts["GoalConfig"]["properties"]["subject_to"] = {
        "anyOf": [parts["GoalConfig"]["properties"]["subject_to"], {"type": "null"}]
    }
    keys = {
        "type": "object",
        "properties": parts["MethodConfig"]["properties"],
        "additionalProperties": False,
    }
    parts["ModelConfig"]["properties"]["finetune"] |= keys
    parts["MethodConfig"]["properties"]["reinforced"] |= {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def of_group(group: str) -> dict[str, Any]:
    """Return the schema of a file of a group: no key is required, and Hydra's `defaults` may be there."""
    schema = whole()
    of_run = {key: schema[key] for key in ("properties", "additionalProperties")}
    if group in RunConfig.model_fields:
        reference = schema["properties"][group]
        name = str(reference.get("$ref") or reference["allOf"][0]["$ref"]).rpartition("/")[2]
        own = schema["$defs"][name]
    else:
        own = of_run
        for part in schema["$defs"].values():
            part.pop("required", None)
    kept = {key: value for key, value in own.items() if key != "required"}
    kept["properties"] = {**own["properties"], "defaults": _defaults(), "hydra": _ANY}
    return {"$schema": schema["$schema"], **kept, "title": f"{group}=…", "$defs": schema["$defs"]}


def _defaults() -> dict[str, Any]:
    choices = {name: _one_of([*options, None]) for name, options in groups().items()}
    overrides = {f"override /{name}": choice for name, choice in choices.items()}
    entry = {"type": "object", "properties": {**choices, **overrides}}
    return {"type": "array", "items": {"anyOf": [{"type": "string"}, entry]}, "description": "Hydra's list"}


def _method(parts: dict[str, Any]) -> None:
    """Describe terms, rule and intervention of a method."""
    properties = parts["MethodConfig"]["properties"]
    term = {"type": "object", "properties": {"objective": _one_of(KINDS["objective"].kind.names())}}
    weighting = {
        "type": "object",
        "properties": {"name": _one_of(KINDS["weighting"].kind.names())},
        "required": ["name"],
    }
    own = {
        **_OF_EVERY_TERM,
        "weighting": {"anyOf": [{"$ref": "#/$defs/Weighting"}, _one_of(_names("weighting"))]},
    }
    granularity = {
        "granularity": {"enum": ["token", "group", "instance", "batch"]},
        "group_size": {"type": "integer"},
        "length_norm": {"type": "boolean"},
        "normalise": {"type": "boolean"},
    }
    parts["Weighting"] = weighting | {"allOf": _cases(parts, "weighting", "name", granularity)}
    parts["Term"] = term | {"allOf": _cases(parts, "objective", "objective", own)}
    for slot in SLOTS:
        properties[slot] |= {
            "anyOf": [{"$ref": "#/$defs/Term"}, _one_of(_names("objective")), {"type": "null"}]
        }
    further = {key: parts["FurtherConfig"]["properties"][key] for key in ("slot", "weight")}
    parts["FurtherConfig"]["properties"]["objective"] = term["properties"]["objective"]
    parts["FurtherConfig"]["allOf"] = _cases(parts, "objective", "objective", {**own, **further})
    _by_name(parts, "RuleConfig", "name", "rule")
    parts["Intervention"] = {"type": "object", "properties": {"name": _one_of(_names("intervention"))}}
    parts["Intervention"]["allOf"] = _cases(parts, "intervention", "name", {})
    properties["intervention"]["anyOf"] = [{"$ref": "#/$defs/Intervention"}, {"type": "null"}]


def _names(word: str) -> list[str]:
    return KINDS[word].kind.names()


def _one_of(names: Iterable[str | None]) -> dict[str, Any]:
    """Return known names, which an editor offers, or any other."""
    return {"anyOf": [{"enum": [*names]}, _NAME]}


def _by_name(parts: dict[str, Any], section: str, key: str, word: str, below: str | None = None) -> None:
    """Let a section's `key` choose a plug-in, whose options are further keys, or those of its key `below`."""
    properties = parts[section]["properties"]
    properties[key] = {**properties[key], **_one_of(_names(word))}
    if section == "ProbeConfig":
        properties[key]["anyOf"].insert(0, {"const": "none"})
    if below is None:
        parts[section]["allOf"] = _cases(parts, word, key, properties)
    else:
        parts[section]["allOf"] = [
            {
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": {"properties": {below: {"$ref": _defined(parts, word, name)}}},
            }
            for name in _names(word)
        ]


def _by_key(parts: dict[str, Any], section: str, key: str, word: str) -> None:
    """Let the keys of a mapping be plug-ins, with their options as values."""
    known = {
        name: {"anyOf": [{"$ref": _defined(parts, word, name)}, {"type": "null"}]} for name in _names(word)
    }
    parts[section]["properties"][key] |= {"properties": known}


def _cases(parts: dict[str, Any], word: str, key: str, others: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the options of each plug-in as a condition on the key that names it.

    others: further keys of the same mapping.
    """
    cases = []
    for name in _names(word):
        reference = _defined(parts, word, name)
        own = parts[reference.rpartition("/")[2]].get("properties", {})
        then = {"properties": {key: True, **others, **own}, "additionalProperties": False}
        cases.append({"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then})
    return cases


def _defined(parts: dict[str, Any], word: str, name: str) -> str:
    """Return the reference to the options of a plug-in, described once."""
    defined = f"{word}.{name}"
    if defined not in parts:
        model: type[BaseModel] = options_of(KINDS[word].kind.find(name, name))
        schema = model.model_json_schema(ref_template=f"#/$defs/{defined}.{{model}}")
        parts |= {f"{defined}.{inner}": part for inner, part in schema.pop("$defs", {}).items()}
        parts[defined] = schema
    return f"#/$defs/{defined}"
