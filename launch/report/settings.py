"""The settings of a configuration as pages and tables name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`{a: {b: 1}}` as `{"a.b": 1}`; an empty mapping is no setting, and a list stays one."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = tuple(value) if isinstance(value, list) else value
    return found


def shortest(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by as many of its last words as tell it from the others; an objective by its slot."""
    full = {key: key.removesuffix(".objective") for key in keys}
    names = {}
    for key, name in full.items():
        words = name.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        others = [other for other in full.values() if other != name]
        names[key] = next(e for e in ends if not any(o == e or o.endswith(f".{e}") for o in others))
    return names


def word(value: Any) -> str:
    """A setting in a label."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
