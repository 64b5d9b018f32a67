"""The trainings that the method benchmark measures: each preset once, and some variants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benches.cases import ROOT, settings
from unlearn.config import MethodConfig
from unlearn.rules import make_rule
from unlearn.terms import bind, needs_alternatives, needs_direction

BASE = "grad_diff"
BATCH = 16  # examples of each group per step
# Times a step of the base, for each token. Distribution: of every token the whole vocabulary is looked at.
AIMS = {"likelihood": 1.1, "distribution": 1.6}
_COSTLY = {"forget", "template", "retain", "full", "further", "rule", "smooth", "intervention", "train"}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "undial with retain=nll": ("undial", {"retain": "nll"}),
    "kl_min, mask=answer": ("kl_min", {"retain": "kl"}),
    "nlul without a teacher": ("nlul", {"retain": "nll"}),
    "hard-sampling, random_k": (
        "hard-sampling",
        {"forget": {"objective": "ascent", "weighting": {"name": "random_k", "keep": 0.3}}},
    ),
    **{
        f"satimp, granularity={granularity}": (
            "satimp",
            {
                "forget": {
                    "objective": "ascent",
                    "weighting": {"name": "satimp", "granularity": granularity, "beta1": 5.0, "beta2": 0.1},
                }
            },
        )
        for granularity in ("instance", "batch")
    },
}
# Layers 5 to 7 of 32; the benchmark's model has four.
_STAND_INS: dict[str, dict[str, Any]] = {
    name: {
        "forget": {"objective": "rmu", "coefficient": 6.5, "layer": 2, "mask": "attention"},
        "retain": {"objective": "embedding", "layer": 2, "mask": "attention"},
        "train": ["*.layers.0.mlp.down_proj.weight", "*.layers.1.mlp.down_proj.weight"],
    }
    for name in ("rmu-wmdp", "rmu-wmdp-openunlearning")
}


@dataclass(frozen=True)
class Row:
    """One training, and the presets that differ from it only in numbers."""

    names: tuple[str, ...]
    method: MethodConfig

    @property
    def aim(self) -> float | None:
        """The highest allowed cost per token; None: no limit (padding, a teacher, further passes)."""
        if self.method.smooth.name not in ("none", "average"):
            return None
        terms = bind(self.method)
        needed = [each for term in terms for each in term.statistics]
        if any(each.source == "teacher" for each in needed):
            return None
        if any(term.needs_step_statistic or term.mask != "answer" for term in terms):
            return None
        return AIMS["distribution" if any(each.quantity == "logits" for each in needed) else "likelihood"]


def rows() -> list[Row]:
    """Return every preset that trains, then the variants; presets of the same cost share a row."""
    by_shape: dict[str, Row] = {}
    for name, method in _all():
        key = _shape(method)
        row = by_shape.get(key, Row((), method))
        by_shape[key] = Row((*row.names, name), row.method)
    return list(by_shape.values())


def as_measured(values: Mapping[str, Any]) -> MethodConfig:
    """Return a preset with the benchmark's batch size, at a constant rate from the first step."""
    changed: dict[str, Any] = {
        "batch": BATCH,
        "steps": None,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "warmup_share": None,
        "warmup_steps": None,
    }
    alternatives = values.get("alternatives", {})
    if alternatives.get("source") == "sampled":
        # Answers to other questions are as long as sampled ones, and nothing has to be generated.
        changed["alternatives"] = {"source": "mismatch", "count": alternatives["count"]}
    return MethodConfig(**{**values, **_STAND_INS.get(values["name"], {}), **changed})


def _all() -> Iterator[tuple[str, MethodConfig]]:
    for file in sorted((ROOT / "configs" / "method").glob("*.yaml")):
        method = as_measured(settings("method", file.stem))
        # A rule of separate gradients, NGDiff's, is compared with separate backwards instead. A direction
        # needs a file.
        separate = make_rule(**method.rule.model_dump()).separate
        if method.terms and not separate and not any(map(needs_direction, bind(method))):
            yield file.stem, method
    for title, (name, changed) in VARIANTS.items():
        yield title, as_measured({**settings("method", name), **changed})


def _shape(method: MethodConfig) -> str:
    """Return the settings of a method that determine its cost; numbers do not."""
    source = method.alternatives.source if any(map(needs_alternatives, bind(method))) else None
    return repr((_without_numbers(method.model_dump(include=_COSTLY)), source))


def _without_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_numbers(v) for k, v in sorted(value.items()) if not isinstance(v, int | float)}
    return [_without_numbers(v) for v in value] if isinstance(value, list) else value
