"""Gradient rules: how the terms of a method become one update. A rule is a module of this package.

Its class has the module's name in camel case; its options are the class's keyword-only arguments. A rule
gives the factor of each term's loss (`factors`). It is shown the number of steps before the first (`begin`)
and the losses after each (`observe`). If it is `separate`, each term has its own backward pass, and the rule
turns the inner products of the gradients into coefficients (`combine`). The gradients themselves stay where
DeepSpeed keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from unlearn import plugins
from unlearn.config import MethodConfig, RuleConfig
from unlearn.errors import ConfigError


class Rule(Protocol):
    """How terms become one update. `terms`, where a rule has it, names the terms that it needs; it may depend
    on the rule's options."""

    separate: bool
    """Whether each term has its own backward pass and gradient."""
    clipped: bool
    """Whether the combined gradient is clipped to a largest norm (`method.clip`)."""

    def begin(self, steps: int) -> None:
        """Take note of how many steps the whole training has; called before `load`."""

    def factors(self) -> Mapping[str, float]:
        """Return the factor of each term's loss in this step; a term that is left out has 1."""

    def combine(self, gram: Tensor) -> Tensor:
        """Return coefficients [T] of the terms' gradients from their inner products [T, T]; if `separate`."""

    def observe(self, losses: Mapping[str, float], epoch: float) -> None:
        """Take note of the terms' losses in the last step, before weights, and of the epochs made with it."""

    def log(self) -> dict[str, float]:
        """Return further values for the history."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


class Stateless:
    """Default implementations of a rule without state, with one backward pass for all terms."""

    separate = False
    clipped = True

    def begin(self, steps: int) -> None: ...

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


_PARTS = ("separate", "clipped", "begin", "factors", "combine", "observe", "log", "state", "load")
RULES = plugins.Kind(__name__, "rule", "class", _PARTS)


def check(config: RuleConfig, terms: Sequence[str], clip: float | None = None) -> None:
    """Refuse a rule, options and terms that do not go together, and a `method.clip` that the rule ignores.

    Raises:
        ConfigError: everything that is wrong, by dotted name.
    """
    rule: Any = _find(config.name)
    owner = f"rule {config.name}"
    problems = []
    try:
        plugins.parsed(plugins.keywords(rule), config.model_extra or {}, "method.rule", owner)
    except ConfigError as error:
        problems += error.problems
    made = rule if problems else make_rule(**config.model_dump())
    lacking = [term for term in getattr(made, "terms", ()) if term not in terms]
    problems += [f"method.{term} has no term: {owner} needs one" for term in lacking]
    if clip and not rule.clipped:
        problems.append(
            f"method.clip={clip:g}: {owner} gives an update of a length of its own, which is not clipped; "
            "leave method.clip out"
        )
    if problems:
        raise ConfigError(problems)


def clip_norm(method: MethodConfig) -> float:
    """Return the largest global gradient norm of a step, 0 where nothing is clipped."""
    if method.clip is not None:
        return method.clip
    return 1.0 if _find(method.rule.name).clipped else 0.0


def make_rule(name: str, **options: Any) -> Rule:
    """Return the rule of that name with its options."""
    rule: Rule = _find(name)(**options)
    return rule


def _find(name: str) -> type[Any]:
    rule: type[Any] = RULES.find(name, f"method.rule.name={name}")
    return rule
