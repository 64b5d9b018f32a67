"""`unlearn schema`: the configuration as JSON Schema (draft 7), with the options of plug-ins, for editors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.commands.plug_ins import KINDS, options_of
from launch.config_groups import groups
from unlearn.arguments import Parser, path_argument
from unlearn.config import SLOTS, RunConfig
from unlearn.errors import UserError, did_you_mean
from unlearn.files import check_writable, write_json
from unlearn.guard import tool

_EXAMPLES = ("--out unlearn.schema.json", "method --out method.schema.json", "")
_DESCRIPTION = """\
Write the JSON Schema of the whole configuration, as `unlearn --cfg job` prints it, or of a file of one group,
as in configs/method or configs/experiment. Names of plug-ins that ship with the project bring their options;
any other name is a plug-in of your own, with any options."""
_EPILOG = """\
An editor with the YAML language server (VS Code: the extension redhat.vscode-yaml) then completes keys, shows
their descriptions and marks mistakes. Write as the first line of a file, with a path from it or a URL,

  # yaml-language-server: $schema=../../method.schema.json

or in the settings of VS Code, for all files of a group:

  "yaml.schemas": {"method.schema.json": "configs/method/*.yaml",
                   "experiment.schema.json": "configs/experiment/*.yaml"}"""


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
        sys.stdout.write(f"written: {options.out}\n")


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
    # What validators take besides the types.
    parts["ProbeConfig"]["properties"]["method"]["anyOf"].append(_one_of(groups()["method"]))
    bounds = parts["GoalConfig"]["properties"]
    bounds["subject_to"] = {"anyOf": [bounds["subject_to"], {"type": "null"}]}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_draft_7(schema)}


def of_group(group: str) -> dict[str, Any]:
    """Return the schema of a file of a group: no key is required, and Hydra's `defaults` may be there."""
    schema = whole()
    parts = schema.pop("$defs")
    if group in RunConfig.model_fields:
        own = dict(parts[schema["properties"][group]["$ref"].rpartition("/")[2]])
    else:  # experiment: some keys of some sections
        own = dict(schema)
        parts = {name: _without(part, "required") for name, part in parts.items()}
    own["properties"] = {**own["properties"], "defaults": _defaults(), "hydra": {"type": "object"}}
    own |= {"$schema": schema["$schema"], "title": f"{group}=…"}
    return {**_without(own, "required"), "$defs": parts}


def _defaults() -> dict[str, Any]:
    """Return the schema of Hydra's list: an option or several by group, each as it is or as an override."""
    choices = {
        name: {"anyOf": [_one_of([*options, None]), {"type": "array", "items": _one_of(options)}]}
        for name, options in groups().items()
    }
    overrides = {f"override /{name}": choice for name, choice in choices.items()}
    entry = {"type": "object", "properties": {**choices, **overrides}}
    return {"type": "array", "items": {"anyOf": [{"type": "string"}, entry]}}


def _method(parts: dict[str, Any]) -> None:
    """Describe terms, rule and intervention of a method, and where keys of a method stand elsewhere."""
    from unlearn.terms import TermKeys, WeightingOptions  # with torch
    from unlearn.weightings._granularity import GRANULARITIES

    method = parts["MethodConfig"]["properties"]
    of_weightings = WeightingOptions.model_json_schema()["properties"]
    of_weightings["granularity"] = {"enum": [*GRANULARITIES]}
    weighting = {"anyOf": [{"$ref": "#/$defs/Weighting"}, _one_of(_names("weighting"))]}
    own = {**TermKeys.model_json_schema()["properties"], "weighting": weighting}
    del own["objective"]
    parts["Weighting"] = _open("weighting", "name")
    parts["Weighting"]["allOf"] = _cases(parts, "weighting", "name", of_weightings)
    parts["Term"] = _open("objective", "objective")
    parts["Term"]["allOf"] = _cases(parts, "objective", "objective", own)
    short = _one_of(["none", *_names("objective")])
    for slot in SLOTS:
        method[slot]["anyOf"] = [{"$ref": "#/$defs/Term"}, short, {"type": "null"}]
    further = parts["FurtherConfig"]
    further["properties"] |= _open("objective", "objective")["properties"]
    further["allOf"] = _cases(parts, "objective", "objective", {**own, **further["properties"]})
    _by_name(parts, "RuleConfig", "name", "rule")
    parts["Intervention"] = _open("intervention", "name")
    parts["Intervention"]["allOf"] = _cases(parts, "intervention", "name", {})
    method["intervention"]["anyOf"] = [{"$ref": "#/$defs/Intervention"}, {"type": "null"}]
    parts["MethodKeys"] = {"type": "object", "properties": method, "additionalProperties": False}
    for section, key in (
        ("ModelConfig", "finetune"), ("MethodConfig", "reinforced"), ("UnlearnedConfig", "keys"),
    ):  # fmt: skip
        parts[section]["properties"][key]["allOf"] = [{"$ref": "#/$defs/MethodKeys"}]


def _names(word: str) -> list[str]:
    return KINDS[word].kind.names()


def _one_of(names: Iterable[str | None]) -> dict[str, Any]:
    """Return known names, which an editor offers, or any other."""
    return {"anyOf": [{"enum": [*names]}, {"type": "string"}]}


def _open(word: str, key: str) -> dict[str, Any]:
    """Return a mapping whose `key` names a plug-in."""
    return {"type": "object", "properties": {key: _one_of(_names(word))}, "required": [key]}


def _by_name(parts: dict[str, Any], section: str, key: str, word: str, below: str = "") -> None:
    """Let a section's `key` choose a plug-in, whose options are further keys, or those of its key `below`."""
    properties = parts[section]["properties"]
    properties[key] |= _one_of(_names(word))
    parts[section]["allOf"] = _cases(parts, word, key, properties, below)


def _by_key(parts: dict[str, Any], section: str, key: str, word: str) -> None:
    """Let the keys of a mapping be plug-ins, with their options as values."""
    parts[section]["properties"][key]["properties"] = {
        name: {"anyOf": [{"$ref": _defined(parts, word, name)}, {"type": "null"}]} for name in _names(word)
    }


def _cases(
    parts: dict[str, Any], word: str, key: str, others: Mapping[str, Any], below: str = ""
) -> list[dict[str, Any]]:
    """Return the options of each plug-in as a condition on the key that names it.

    others: further keys of the same mapping. below: the one of them that holds the options, if it is one.
    """
    cases = []
    for name in _names(word):
        reference = _defined(parts, word, name)
        options = parts[reference.rpartition("/")[2]].get("properties", {})
        own = {below: {"$ref": reference}} if below else options
        then = {"properties": {key: True, **others, **own}, "additionalProperties": False}
        cases.append({"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then})
    return cases


def _defined(parts: dict[str, Any], word: str, name: str) -> str:
    """Return the reference to the options of a plug-in, described once."""
    defined = f"{word}.{name}"
    if defined not in parts:
        model = options_of(KINDS[word].kind.find(name, name))
        schema = model.model_json_schema(ref_template=f"#/$defs/{defined}.{{model}}")
        parts |= {f"{defined}.{inner}": part for inner, part in schema.pop("$defs", {}).items()}
        parts[defined] = schema
    return f"#/$defs/{defined}"


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _draft_7(schema: Any) -> Any:
    """Return a schema with the only newer keyword, for tuples, in the words of draft 7."""
    if isinstance(schema, list):
        return [_draft_7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {"items" if key == "prefixItems" else key: _draft_7(value) for key, value in schema.items()}
