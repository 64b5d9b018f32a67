"""The keys of a configuration section with types, defaults and descriptions, for help and documents."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

_TYPES: Mapping[Any, str] = {
    int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", Any: "any value",
    NoneType: "null",
}  # fmt: skip
_BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


@dataclass(frozen=True)
class Key:
    """A key: its dotted name, what values it takes, its default as JSON, or None if it is required."""

    name: str
    type: str
    default: str | None
    text: str


def keys_of(section: type[BaseModel], prefix: str = "", documented: Any = None) -> Iterator[Key]:
    """Yield the keys of a section in order, those of the sections in it included.

    A description is the field's, or the field's line in a list of the docstring of `documented`, by default
    of the section.
    """
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from keys_of(inner, f"{prefix}{name}.")
            continue
        text = field.description or _documented(documented or section).get(name, "")
        default = None if field.default is PydanticUndefined else _json(field.default)
        yield Key(f"{prefix}{name}", type_name(field.annotation, field.metadata), default, text)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, None for a field of another type."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def type_name(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Describe the values of a type: `integer > 0`, `list of text`, `a, b or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(inner[0], [*inner[1:], *metadata])
    if origin is Literal:
        return _either([str(value) for value in inner])
    if origin in (Union, UnionType):
        parts = [part for one in inner for part in _parts(one, metadata)]
        return _either(list(dict.fromkeys(parts)))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "mapping"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        items = [one for one in inner if one is not Ellipsis]
        return f"list of {_either(list(dict.fromkeys(type_name(item) for item in items)))}"
    if section_in(annotation) is not None:
        return "mapping"
    bounds = [
        f"{sign} {_number(bound)}"
        for attribute, sign in _BOUNDS
        for one in metadata
        if (bound := getattr(one, attribute, None)) is not None
    ]
    name = _TYPES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{name} {', '.join(bounds)}".strip()


def _number(bound: float) -> str:
    """Write a bound; that of the integers of 64 bits as a power."""
    return {2**63: "2^63", -(2**63): "−2^63"}.get(bound) or f"{bound:g}"  # type: ignore[call-overload]


def _parts(annotation: Any, metadata: Sequence[Any]) -> list[str]:
    """Return the alternatives of one member of a union; those of a literal are several."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [type_name(annotation, () if annotation is NoneType else metadata)]


def _either(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else names[0]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _documented(thing: Any) -> Mapping[str, str]:
    """Return the items of the list in a docstring, by key: "- `a`, `b`: what both are"."""
    texts: dict[str, str] = {}
    for item in re.split(r"^- ", inspect.getdoc(thing) or "", flags=re.MULTILINE)[1:]:
        names, colon, text = item.partition(": ")
        if colon and re.fullmatch(r"(`\w+`(, )?)+", names):
            line = " ".join(text.split("\n\n")[0].split()).removesuffix(".")
            line = re.sub(r"\bNone\b", "null", line)
            texts |= dict.fromkeys(re.findall(r"\w+", names), line)
    return texts
