"""Gradient rules: how the terms of a method become one update. A rule is a module of this package.

Its class has the module's name in camel case; its options are the class's keyword-only arguments. A rule
gives the factor of each term's loss (`factors`). It is shown the number of steps before the first (`begin`)
and the losses after each (`observe`). If it is `separate`, each term has its own backward pass, and the rule
turns the inner products of the gradients into coefficients (`combine`). The gradients themselves stay where
DeepSpeed keeps them.

A `Remembering` rule also keeps one gradient from step to step. It is given the inner products with that one
too (`project`), and says what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from unlearn import plugins
from unlearn.config import MethodConfig, RuleConfig
from unlearn.errors import ConfigError


class Rule(Protocol):
    """How terms become one update. `terms`, where a rule has it, names the terms that it needs, `a|b` one of
    two; it may depend on the rule's options."""

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


class Remembering(Stateless):
    """A separate rule that keeps one gradient M from step to step, which is 0 before the first step.

    The training holds M in fp32, writes it to checkpoints as tensors, and changes it only once the update of
    the step is known to be finite.
    """

    separate = True
    keeps = True
    """Whether M is used; with False it stays 0 and takes no memory."""

    def project(self, gram: Tensor, sets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the coefficients of the update, and those of the next M, [T + 1] each.

        `gram` [T + 1, T + 1] are the inner products of the terms' gradients, times the terms' weights, and of
        M, which is the last. `sets` [T] names the set that each term is on.
        """
        raise NotImplementedError("a rule that keeps a gradient says what becomes of it")


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
    for needed in getattr(made, "terms", ()):
        slots = needed.split("|")
        if not any(slot in terms for slot in slots):
            named = " or ".join(f"method.{slot}" for slot in slots)
            problems.append(f"{named} has no term: {owner} needs one")
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
