"""Gradient rules: how the terms of a method become one update. A rule is a module of this package.

Its class is the module's name in camel case, its options the class's keyword-only arguments. A rule says by
what each term's loss is multiplied (`factors`), hears of the losses (`observe`), and, if it is `separate`,
gets one backward pass per term and turns the inner products of their gradients into coefficients. What rules
compute is small and pure; gradients themselves stay where DeepSpeed keeps them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from unlearn import plugins
from unlearn.config import MethodConfig, RuleConfig
from unlearn.errors import ConfigError, did_you_mean


class Rule(Protocol):
    """How terms become one update."""

    separate: bool
    """Whether each term gets a backward pass, and a gradient, of its own."""
    clipped: bool
    """Whether the combined gradient is cut to a largest norm (`method.clip`)."""

    def factors(self) -> Mapping[str, float]:
        """By what the loss of a term is multiplied in this step; 1 for a term that is left out."""

    def combine(self, gram: Tensor) -> Tensor:
        """Coefficients [T] of the terms' gradients from their inner products [T, T]; if `separate`."""

    def observe(self, losses: Mapping[str, float], epoch: float) -> None:
        """The terms' losses in the step just made, before weights; `epoch` counts up to and with it."""

    def log(self) -> dict[str, float]:
        """What goes into the history beside the losses."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; JSON."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Put that back."""


class Stateless:
    """What a rule need not say."""

    separate = False
    clipped = True

    def factors(self) -> Mapping[str, float]:
        return {}

    def combine(self, gram: Tensor) -> Tensor:
        raise NotImplementedError("this rule makes one backward pass for all terms")

    def observe(self, losses: Mapping[str, float], epoch: float) -> None: ...

    def log(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None: ...


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(config: RuleConfig, terms: Sequence[str], clip: float | None = None) -> None:
    """Refuse a rule or options of it that are not there, terms it cannot do without, and a `method.clip` that
    its update is not cut to.

    Raises:
        ConfigError: everything that is wrong, by dotted name.
    """
    if config.name not in names():
        raise ConfigError(
            [f"method.rule.name={config.name}: no such rule{did_you_mean(config.name, names())}"]
        )
    kind, given = _kind(config.name), config.model_extra or {}
    known = dict(inspect.signature(kind, eval_str=True).parameters)
    problems = plugins.misfits("method.rule", config.name, known, given, "option")
    lacking = [term for term in getattr(kind, "terms", ()) if term not in terms]
    problems += [f"method.{term} has no term: rule {config.name} needs one" for term in lacking]
    if clip and not kind.clipped:
        problems.append(
            f"method.clip={clip:g}: rule {config.name} gives an update of a length of its own, which is not "
            "clipped; leave method.clip out"
        )
    if problems:
        raise ConfigError(problems)


def clip_norm(method: MethodConfig) -> float:
    """The largest global gradient norm of a step, 0 where nothing is clipped."""
    if method.clip is not None:
        return method.clip
    return 1.0 if _kind(method.rule.name).clipped else 0.0


def make_rule(name: str, **options: Any) -> Rule:
    """The rule of that name with its options."""
    rule: Rule = _kind(name)(**options)
    return rule


def _kind(name: str) -> type[Any]:
    camel = "".join(part.capitalize() for part in name.split("_"))
    kind: type[Any] = getattr(importlib.import_module(f"{__name__}.{name}"), camel)
    return kind
