"""Texts with `{question}` and the like in them: filled, checked, and with line breaks as one types them."""

from __future__ import annotations

import re

from unlearn.errors import did_you_mean

EXAMPLE = "'model.prompt.template=\"Question: {question}\\nAnswer: \"'"
"""A plain template as it is typed in a shell."""

_ESCAPES = {r"\n": "\n", r"\t": "\t"}


def unescaped(text: str) -> str:
    r"""Return the text with each `\n` and `\t` of two characters as the character that it stands for."""
    for typed, meant in _ESCAPES.items():
        text = text.replace(typed, meant)
    return text


def filled(template: str, **values: str) -> str:
    """Return the template with each `{name}` of `values` replaced; other braces, and theirs, stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def lacking(template: str, name: str) -> str | None:
    """Return what is wrong with a template that has no `{name}`; None where it has one."""
    if f"{{{name}}}" in template:
        return None
    others = re.findall(r"\{+\s*([^{}\s]*)\s*\}+", template)
    near = [other for other in others if did_you_mean(other.lower(), [name]).startswith(" (did")]
    instead = f" (did you mean {{{name}}} in place of {{{near[0]}}}?)" if near else ""
    return f"has no {{{name}}}, so every {name} would be left out{instead}"
