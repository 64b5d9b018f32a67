r"""Fill and check templates such as `{question}`, and interpret `\n` in them."""

from __future__ import annotations

import re

from unlearn.errors import did_you_mean

EXAMPLE = "'model.prompt.template=\"Question: {question}\\nAnswer: \"'"
"""A plain template, quoted for a shell."""

_ESCAPES = {r"\n": "\n", r"\t": "\t"}


def unescaped(text: str) -> str:
    r"""Replace each `\n` and `\t` of two characters by a line break or a tab."""
    for typed, meant in _ESCAPES.items():
        text = text.replace(typed, meant)
    return text


def filled(template: str, **values: str) -> str:
    """Replace each `{name}` of `values` in the template; other braces, and those within values, stay."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def lacking(template: str, name: str) -> str | None:
    """Return what is wrong with a template that has no `{name}`; None where it has one."""
    if f"{{{name}}}" in template:
        return None
    others = re.findall(r"\{+\s*([^{}\s]*)\s*\}+", template)
    near = [other for other in others if did_you_mean(other.lower(), [name]).startswith(" (did")]
    instead = f" (did you mean {{{name}}} instead of {{{near[0]}}}?)" if near else ""
    return f"has no {{{name}}}, so every {name} would be left out{instead}"
