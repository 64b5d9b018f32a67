"""The claims on trial, read from claims.yaml: papers, sentences, and what is compared."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from unlearn.config import Section

FILE = Path(__file__).with_name("claims.yaml")
FORGET, RETAIN = "tofu/forget/extraction_strength", "tofu/retain/extraction_strength"
MIXED = "calibrated/"
"""Prefix of metrics of the mixture with the target."""
LEFT = f"{MIXED}{FORGET}"
TARGET = "the target"
"""What an arm may be compared with besides another: the model before any method."""
At = Literal["best", "worst", "spread"]


class Arm(Section):
    """Runs that are compared as one method: all with these settings, which may differ in the rates."""

    where: dict[str, Any] = Field(description="values by setting; null: the runs do not have it")
    choose: list[str] = Field([], description="settings that are chosen along with the learning rate")


class Level(Section):
    """How the runs of the tasks with these settings are made, as Markdown without a full stop."""

    where: dict[str, Any]
    made: str


class Comparison(Section):
    """One or several paired differences: the arm `of` against each of `than`, or against a number.

    `TARGET` stands for the target of a seed, on either side.
    at: each arm at its setting with the best, or the worst, mean on the selection items; or the spread of the
    metric over its settings. least: the claimed difference is larger. log: of decimal logarithms.
    """

    of: str
    than: list[str] | float
    metric: str | None = None
    than_metric: str | None = None
    better: Literal["lower", "higher"] | None = None
    at: At = "best"
    than_at: At | None = None
    least: float = 0.0
    log: bool = False

    @model_validator(mode="after")
    def _has_an_arm(self) -> Comparison:
        if self.of == TARGET and (not isinstance(self.than, list) or TARGET in self.than):
            raise ValueError(f"{TARGET} is compared with an arm")
        return self


class Weights(Section):
    """A weighting of tokens, and the claimed sign of its rank correlation with their likelihood."""

    name: str
    options: dict[str, float] = Field({})
    sign: Literal[1, -1]

    @property
    def label(self) -> str:
        return f"{self.name} ({', '.join(f'{key} {value:g}' for key, value in self.options.items())})"


class Claim(Section):
    """A claim: the paper's sentence in our words, where it stands, what is compared, and how.

    run: the experiments whose runs are compared. changes: what would change the verdict.
    """

    id: str
    paper: str
    claim: str
    where: str
    run: str
    changes: str
    metric: str = LEFT
    better: Literal["lower", "higher"] = "lower"
    choose: str = f"{MIXED}selection/{FORGET}"
    choose_better: Literal["lower", "higher"] = "lower"
    figure: Literal["trade-off", "differences"] = "differences"
    comparisons: list[Comparison] = Field([])
    weights: list[Weights] = Field([])

    @model_validator(mode="after")
    def _one_kind(self) -> Claim:
        if bool(self.comparisons) == bool(self.weights):
            raise ValueError(f"{self.id}: give comparisons, or weights")
        return self


class Claims(Section):
    arms: dict[str, Arm]
    levels: list[Level] = Field([])
    claims: list[Claim]

    @model_validator(mode="after")
    def _arms_exist(self) -> Claims:
        for claim in self.claims:
            if unknown := set(arms_of(claim)) - self.arms.keys():
                raise ValueError(f"{claim.id}: no such arm: {', '.join(sorted(unknown))}")
        return self


def arms_of(claim: Claim) -> list[str]:
    """Return the arms of a claim, each once, in order; the target is none."""

    def every() -> Iterator[str]:
        for each in claim.comparisons:
            yield each.of
            if isinstance(each.than, list):
                yield from each.than

    return [name for name in dict.fromkeys(every()) if name != TARGET]


@cache
def load() -> Claims:
    """Return the claims of the project."""
    return Claims.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
