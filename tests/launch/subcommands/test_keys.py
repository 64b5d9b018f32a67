"""Keys of a section as help and documents show them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from launch.commands.keys import Key, keys_of
from unlearn.config import Section


class Inner(Section):
    """Below another section.

    - `first`, `second`: both of them; None:
      on a line of its own.
    """

    first: int = 1
    second: tuple[float, ...] = (0.5, 1.0)


class Outer(Section):
    """A section."""

    name: str = Field(description="required")
    inner: Inner = Inner()
    kind: Literal["a", "b"] | NonNegativeFloat | None = Field(None, description="a name or a number")
    share: float = Field(0.5, ge=0, lt=1, description="a share")
    many: PositiveInt | None = Field(None, description="a count")
    text: dict[str, str] = Field({}, description="more")


def test_keys_have_types_defaults_and_descriptions():
    assert list(keys_of(Outer, "outer.")) == [
        Key("outer.name", "text", None, "required"),
        Key("outer.inner.first", "integer", "1", "both of them; null: on a line of its own"),
        Key("outer.inner.second", "list of number", "[0.5, 1.0]", "both of them; null: on a line of its own"),
        Key("outer.kind", "a, b, number ≥ 0 or null", "null", "a name or a number"),
        Key("outer.share", "number ≥ 0, < 1", "0.5", "a share"),
        Key("outer.many", "integer > 0 or null", "null", "a count"),
        Key("outer.text", "mapping", "{}", "more"),
    ]
