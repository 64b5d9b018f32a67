"""Signatures, settings and docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table. Cells may hold Markdown; bars in them are escaped."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def anchor(heading: str) -> str:
    """Return the anchor that links to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def key_anchor(key: str) -> str:
    """Return the anchor of a configuration key in docs/configuration.md: `method-forget-weighting-name`."""
    return key.lower().replace(".", "-")


def linked(text: str) -> str:
    """Turn arXiv numbers into links, and escape the stars of formulas."""
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", text.replace("*", r"\*"))


def summary(thing: Any) -> str:
    """Return the first paragraph of a docstring."""
    return linked(" ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()))


def written(value: Any) -> str:
    """Write a setting as a person would."""
    if isinstance(value, BaseModel):
        stated = {
            key: getattr(value, key) for key in type(value).model_fields if key in value.model_fields_set
        }
        return written({**stated, **(value.model_extra or {})})
    if isinstance(value, Mapping):
        return call(value) if "name" in value else ", ".join(f"{k} {written(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"`{v}`" if isinstance(v, str) else written(v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return "as in the file" if "\n" in str(value) else str(value)  # a text of several lines


def call(options: Mapping[str, Any]) -> str:
    """Write a name with its options: "`name` (beta 0.1)"."""
    rest = written({key: value for key, value in options.items() if key != "name"})
    return f"`{options['name']}`" + (f" ({rest})" if rest else "")


def scientific(value: float) -> str:
    """Write a learning rate: 5e-5."""
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def positional(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's positional parameters, which are its inputs."""
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def keywords(function: Callable[..., Any]) -> str:
    """Write a function's keyword-only parameters with their defaults and choices."""
    texts = []
    for p in inspect.signature(function, eval_str=True).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            choices = get_args(p.annotation) if get_origin(p.annotation) is Literal else ()
            default = "" if p.default is p.empty else f" {written(p.default)}"
            among = f" ({', '.join(choices)})" if choices else ""
            texts.append(f"`{p.name}`{default}{among}")
    return ", ".join(texts) or "–"


def options(section: type[BaseModel]) -> str:
    """Return a table of a section's keys."""
    rows = []
    for key, field in section.model_fields.items():
        default = "required" if field.is_required() else written(field.default)
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        rows.append((f"`{key}`", default, ", ".join(f"`{c}`" for c in choices), field.description or ""))
    if not any(row[2] for row in rows):
        return table(("option", "default", ""), [(key, default, text) for key, default, _, text in rows])
    return table(("option", "default", "one of", ""), rows)
