"""Check a value against a JSON Schema, as far as schemas of this project go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
_BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}
_WORDS = {"$schema", "$defs", "title", "description", "default", "format", "then"}
_KNOWN = {
    *_WORDS, *_BOUNDS, "type", "enum", "const", "$ref", "anyOf", "allOf", "if", "properties", "required",
    "additionalProperties", "items", "minItems", "maxItems",
}  # fmt: skip


def problems(value: Any, schema: Any, whole: Mapping[str, Any], path: str = "") -> list[str]:
    """Return what is wrong with a value, each with the dotted key; `whole` has the definitions."""
    return [] if schema is True else [*_problems(value, schema, whole, path)]


def _problems(value: Any, schema: Any, whole: Mapping[str, Any], path: str) -> Iterator[str]:
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    if "$ref" in schema:
        yield from problems(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole, path)
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{path}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{path}: {value!r} is not {schema['const']!r}"
    number = isinstance(value, int | float)
    yield from (
        f"{path}: {value!r} is beyond {key} {schema[key]}"
        for key, fits in _BOUNDS.items()
        if key in schema and number and not fits(value, schema[key])
    )
    for part in schema.get("allOf", ()):
        yield from problems(value, part, whole, path)
    if "if" in schema and not problems(value, schema["if"], whole, path):
        yield from problems(value, schema["then"], whole, path)
    if "anyOf" in schema:
        each = [problems(value, part, whole, path) for part in schema["anyOf"]]
        yield from () if not all(each) else min(each, key=len)
    if isinstance(value, dict):
        yield from _of_mapping(value, schema, whole, path)
    if isinstance(value, list):
        items = schema.get("items", True)
        many = items if isinstance(items, list) else [items] * len(value)
        for place, (each, part) in enumerate(zip(value, many, strict=True)):
            yield from problems(each, part, whole, f"{path}.{place}")


def _of_mapping(value: Mapping[str, Any], schema: Any, whole: Mapping[str, Any], path: str) -> Iterator[str]:
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    yield from (f"{path}.{key} is missing" for key in schema.get("required", ()) if key not in value)
    for key, each in value.items():
        if key not in known and other is False:
            yield f"{path}.{key}: there is no such key"
        else:
            yield from problems(each, known.get(key, other), whole, f"{path}.{key}")
