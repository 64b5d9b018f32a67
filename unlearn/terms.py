"""From a method's configuration to callable terms."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

import unlearn.rules
from unlearn import plugins, smoothing
from unlearn.config import Mask, MethodConfig, RunConfig, Section
from unlearn.errors import ConfigError, did_you_mean
from unlearn.statistics import CONFIDENCES, STATISTICS, Statistic, statistics_of
from unlearn.weightings._granularity import GRANULARITIES, instance_weights, token_weights

OBJECTIVES = plugins.Kind("unlearn.objectives", "objective", "function")
WEIGHTINGS = plugins.Kind("unlearn.weightings", "weighting", "function")


class TermKeys(Section):
    """The keys of every term, `method.<slot>`; further keys are hyper-parameters of its objective."""

    objective: str = Field(description="a module of unlearn.objectives, or a dotted path")
    weighting: str | dict[str, Any] | None = Field(
        None, description="how its tokens are weighted: a name, or {name: …} with options; null: equally"
    )
    mask: Mask = Field("answer", description="the positions that the objective is computed on")
    skip: NonNegativeInt = Field(0, description="so many answer tokens are left out, from the first on")
    layer: NonNegativeFloat | None = Field(
        None, description="of objectives on hidden states: a layer's number, or its depth as a fraction"
    )
    refusal: str | None = Field(
        None, description='of objectives that teach one refusal: its text, tokenised alone ("No idea")'
    )
    refused_prompts: str | None = Field(
        None,
        description="of objectives that need a direction: a file of prompts that the model refuses, a text "
        "file with one per line, json or jsonl",
    )


_RESERVED = tuple(TermKeys.model_fields)


@dataclass(frozen=True)
class Bound:
    """A pure function with its hyper-parameters, and the names of the statistics that it takes."""

    function: Callable[..., Tensor]
    needs: tuple[str, ...]
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, named: Mapping[str, Tensor]) -> Tensor:
        return self.function(**{name: named[name] for name in self.needs if name in named}, **self.hyper)


@dataclass(frozen=True)
class Weighting:
    """How a term's tokens are weighted: a function, and the granularity at which it looks at confidence."""

    bound: Bound
    granularity: str = "token"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batchwise(self) -> bool:
        return self.granularity == "batch"

    def __call__(self, named: Mapping[str, Tensor]) -> Tensor:
        weigh = partial(self.bound.function, **self.bound.hyper)
        statistics = {name: named[name] for name in self.bound.needs}
        mean = named["batch_mean"][0] if self.batchwise else None
        return token_weights(
            weigh, statistics, named["lengths"], granularity=self.granularity, batch_mean=mean, **self.options
        )

    def instance(self, named: Mapping[str, Tensor]) -> Tensor:
        """The weights whose mean over the step `batch` granularity gives to every token, [B, 1]."""
        weigh = partial(self.bound.function, **self.bound.hyper)
        statistics = {name: named[name] for name in self.bound.needs}
        length_norm = self.options.get("length_norm", False)
        return instance_weights(weigh, statistics, named["lengths"], length_norm=length_norm)[:, None]


@dataclass(frozen=True)
class Term:
    """An objective with its hyper-parameters, on one group of the data.

    `refusal_ids` are the tokens of `refusal`, from `unlearn.training.prepare.resolve_refusals`.
    """

    name: str
    group: str
    weight: float
    objective: Bound
    per: Literal["token", "example"]
    mask: Mask = "answer"
    skip: int = 0
    layer: float | None = None
    weighting: Weighting | None = None
    step_statistic: Bound | None = None
    """What must be averaged over the whole step before the objective can be called."""
    refusal: str | None = None
    refusal_ids: tuple[int, ...] = ()
    refused_prompts: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Names of all statistics that the term needs."""
        more = self.step_statistic_needs if self.needs_step_statistic else frozenset()
        return self.loss_needs | more

    @property
    def statistics(self) -> list[Statistic]:
        """All statistics that the term needs."""
        return statistics_of(self.needs)

    @property
    def loss_needs(self) -> frozenset[str]:
        """Names of the statistics that its loss needs, besides the mean over the step."""
        names = {name for name in self.objective.needs if STATISTICS[name].source != "term"}
        if self.weighting:
            names |= {*self.weighting.bound.needs, "lengths"}
        return frozenset(names)

    @property
    def needs_step_statistic(self) -> bool:
        """Whether its loss needs a mean over the whole step (`batch_mean`), which takes a pass of its own."""
        return self.step_statistic is not None or (self.weighting is not None and self.weighting.batchwise)

    @property
    def step_statistic_needs(self) -> frozenset[str]:
        """Names of the statistics that this mean needs."""
        if self.step_statistic is not None:
            return frozenset(self.step_statistic.needs)
        assert self.weighting is not None
        return frozenset({*self.weighting.bound.needs, "lengths"})

    def step_statistic_values(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the values [B, K] whose mean over the step is `batch_mean`."""
        if self.step_statistic is not None:
            return self.step_statistic(named)
        assert self.weighting is not None
        return self.weighting.instance(named)

    def values(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the un-averaged values, [N] or [B]."""
        if self.weighting:
            named = {**named, "weights": self.weighting(named)}
        return self.objective(named)


def bind(method: MethodConfig) -> list[Term]:
    """Return the method's terms, each objective's keys checked against its signature.

    A method is bound once in a process, and its terms are kept.

    Raises:
        ConfigError: everything that is wrong, by dotted name.
    """
    stated = repr(method)  # all of its values
    if stated not in KNOWN_TERMS:
        KNOWN_TERMS[stated] = make_terms(method)
    return list(KNOWN_TERMS[stated])


KNOWN_TERMS: dict[str, list[Term]] = {}
"""The terms of methods that this process has bound."""


def make_terms(method: MethodConfig) -> list[Term]:
    """Bind a method anew, as `bind` does once.

    Raises:
        ConfigError: everything that is wrong, by dotted name.
    """
    problems: list[str] = []
    terms: list[Term] = []
    stated: list[tuple[str, str, str, float, dict[str, Any]]] = [
        (f"method.{slot}", slot, slot, method.weight(slot), dict(keys)) for slot, keys in method.terms.items()
    ]
    for number, further in enumerate(method.further):
        name = f"{further.slot}_{str(further.objective).rpartition('.')[2]}"
        keys = {"objective": further.objective, **(further.model_extra or {})}
        stated.append((f"method.further.{number}", name, further.slot, further.weight, keys))
    for key, name, group, weight, keys in stated:
        try:
            terms.append(_term(key, name, group, weight, keys))
        except ConfigError as error:
            problems += error.problems
    try:
        unlearn.rules.check(method.rule, [name for _, name, *_ in stated], method.clip)
    except ConfigError as error:
        problems += error.problems
    problems += smoothing.problems(method.smooth, [group for _, _, group, *_ in stated])
    if len({term.name for term in terms}) < len(terms):
        problems.append("method.further: two terms with one objective on the same data; add up their weights")
    if problems:
        raise ConfigError(problems)
    return terms


def training_sets(config: RunConfig) -> set[str]:
    """Return the sets of the dataset that the method reads."""
    method = config.method
    fitted: tuple[str, ...] = ()
    if method.intervention is not None:
        from unlearn import interventions  # brings transformers

        fitted = interventions.sets(method.intervention)
    paired = any(needs_alternatives(term) for term in bind(method))
    mismatched = ("retain",) if paired and method.alternatives_from_retain else ()
    return {*method.sets, *fitted, *mismatched}


def needs_alternatives(term: Term) -> bool:
    """Return whether a term needs alternative answers, as its data or to compare with."""
    return term.group == "template" or any(each.alternative for each in term.statistics)


def needs_direction(term: Term) -> bool:
    """Return whether a term needs the direction to prompts that the model refuses."""
    return any(each.quantity == "direction" for each in term.statistics)


def row_multiples(method: MethodConfig, terms: Sequence[Term]) -> dict[str, int]:
    """Return how many rows of an epoch each example makes, by set; sets that are not named have 1."""
    if method.alternatives.rows == "one":
        return {}
    sets = (
        "forget" if term.group == "template" else term.group for term in terms if needs_alternatives(term)
    )
    return dict.fromkeys(sets, method.alternatives.count)


def two_warmups(method: MethodConfig, key: str = "method") -> str:
    """Return the message for a warm-up that is set in two ways."""
    settings = " and ".join(f"{key}.{name}={value:g}" for name, value in method.warmup.items())
    unset = " or ".join(f"{key}.{name}=null" for name in method.warmup)
    return f"{settings}: the warm-up is set more than once; keep one, with {unset} for the others"


def _term(key: str, name: str, group: str, weight: float, keys: dict[str, Any]) -> Term:
    reserved = {k: keys.pop(k) for k in _RESERVED if k in keys}
    objective, per = _objective(key, reserved.get("objective"), keys)
    step_statistic = _step_statistic(objective)
    if step_statistic and (unknown := _unknown(key, f"{reserved['objective']}.batch_mean", step_statistic)):
        raise ConfigError(unknown)
    problems: list[str] = []
    mask, skip, layer = reserved.get("mask", "answer"), reserved.get("skip", 0), reserved.get("layer")
    if mask not in get_args(Mask):
        problems.append(f"{key}.mask={mask}: choose from {', '.join(get_args(Mask))}")
    if not isinstance(skip, int) or skip < 0:
        problems.append(f"{key}.skip={skip!r}: give a number of answer tokens to leave out")
    elif skip and mask != "answer":
        problems.append(
            f"{key}.skip={skip}: leaves out answer tokens, and mask={mask} looks at all positions"
        )
    weighting = None
    if reserved.get("weighting") is not None:
        try:
            weighting = _weighting(f"{key}.weighting", reserved["weighting"])
        except ConfigError as error:
            problems += error.problems
        if "weights" not in objective.needs:
            problems.append(f"{key}.weighting: {reserved['objective']} takes no weights")
    term = Term(
        name, group, weight, objective, per, mask, skip, layer, weighting, step_statistic,
        refusal=reserved.get("refusal"), refused_prompts=reserved.get("refused_prompts"),
    )  # fmt: skip
    problems += _cross_check(key, term, str(reserved["objective"]))
    problems += _check_texts(key, term, str(reserved["objective"]))
    if problems:
        raise ConfigError(problems)
    return term


def _cross_check(key: str, term: Term, name: str) -> list[str]:
    problems = []
    alternative = [each.alternative for each in term.statistics]
    wrong = sorted(each.name for each in term.statistics if each.labelled and not each.alternative)
    if term.mask != "answer" and wrong:
        problems.append(
            f"{key}.mask={term.mask}: {name} looks at the answer tokens themselves ({', '.join(wrong)})"
        )
    if term.layer is None and any(each.needs_layer for each in term.statistics):
        problems.append(
            f"{key}.layer is not set: {name} looks at hidden states; give the number of a layer, or its "
            "depth as a fraction (0.5 is the middle)"
        )
    if term.layer is not None and not (isinstance(term.layer, int | float) and term.layer >= 0):
        problems.append(f"{key}.layer={term.layer!r}: give the number of a layer or a fraction")
    if term.group == "template" and any(alternative):
        problems.append(f"{key}.objective={name} compares with alternative answers: set it on method.forget")
    if alternative and all(alternative):
        problems.append(f"{key}.objective={name} looks at alternative answers alone: set it on template")
    if term.weighting is not None and term.weighting.batchwise and term.step_statistic is not None:
        problems.append(f"{key}.weighting.granularity=batch: {name} has a batch mean of its own")
    return problems


def _check_texts(key: str, term: Term, name: str) -> list[str]:
    """Check the keys of a term with which it names texts."""
    if term.refused_prompts is not None and not needs_direction(term):
        return [f"{key}.refused_prompts={term.refused_prompts}: {name} needs no direction; leave it out"]
    if not isinstance(term.refused_prompts, str | None):
        return [f"{key}.refused_prompts={term.refused_prompts!r}: name a file of prompts, one per line"]
    needed = any(each.quantity == "refusal" for each in term.statistics)
    if term.refusal is None:
        return [f'{key}.refusal is not set: {name} teaches a refusal; give its text ("No idea")'] * needed
    if not needed:
        return [f"{key}.refusal={term.refusal!r}: {name} teaches no refusal; leave it out"]
    if not isinstance(term.refusal, str) or not term.refusal.strip():
        return [f'{key}.refusal={term.refusal!r}: give a text ("No idea")']
    return []


def _objective(key: str, name: Any, keys: dict[str, Any]) -> tuple[Bound, Literal["token", "example"]]:
    if not isinstance(name, str):
        raise ConfigError([f"{key}.objective is not set (known: {', '.join(OBJECTIVES.listed())})"])
    function = OBJECTIVES.find(name, f"{key}.objective={name}")
    bound, problems = _bound(key, f"objective {name}", function, keys, _RESERVED)
    returns = getattr(inspect.signature(function, eval_str=True).return_annotation, "dim_str", "").strip()
    if returns not in ("N", "B"):
        problems.append(f'{key}.objective={name}: annotate what it returns: Float[Tensor, " N"] or " B"')
    if problems:
        raise ConfigError(problems)
    return bound, "token" if returns == "N" else "example"


def _weighting(key: str, stated: Any) -> Weighting:
    keys = {"name": stated} if isinstance(stated, str) else dict(stated)
    name = keys.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError([f"{key}.name is not set (known: {', '.join(WEIGHTINGS.listed())})"])
    granularity = keys.pop("granularity", "token")
    options = {k: keys.pop(k) for k in WeightingOptions.model_fields if k in keys}
    function, owner = WEIGHTINGS.find(name, f"{key}.name={name}"), f"weighting {name}"
    bound, problems = _bound(key, owner, function, keys, ("granularity", *WeightingOptions.model_fields))
    try:
        plugins.parsed(WeightingOptions, options, key, owner)
    except ConfigError as error:
        problems += error.problems
    if granularity not in GRANULARITIES:
        near = did_you_mean(str(granularity), GRANULARITIES)
        problems.append(f"{key}.granularity={granularity}: no such granularity{near}")
    elif granularity != "token" and not set(bound.needs) <= CONFIDENCES:
        problems.append(f"{key}.granularity={granularity}: {name} selects single tokens; leave it at token")
    if problems:
        raise ConfigError(problems)
    return Weighting(bound, granularity, options)


class WeightingOptions(Section):
    """Options of every weighting, whatever its function."""

    model_config = ConfigDict(strict=True)
    group_size: PositiveInt = Field(10, description="tokens of a group, with granularity=group")
    length_norm: bool = Field(
        False, description="with granularity=instance or batch: an answer's probability is its mean per token"
    )
    normalise: bool = Field(False, description="scale the weights of each answer to a mean of one")


def _bound(
    key: str, owner: str, function: Callable[..., Tensor], keys: Mapping[str, Any], near: Sequence[str]
) -> tuple[Bound, list[str]]:
    """Return the function with the keys that are its hyper-parameters, and what is wrong with them."""
    bound = Bound(function, plugins.split(function)[0], dict(keys))
    problems = _unknown(key, owner, bound)
    try:
        plugins.parsed(plugins.keywords(function), keys, key, owner, near)
    except ConfigError as error:
        problems += error.problems
    return bound, problems


def _unknown(key: str, owner: str, bound: Bound) -> list[str]:
    """Return a problem for each parameter that is the name of no statistic."""
    return [
        f"{key}: {owner} asks for {need!r}, which nothing provides{did_you_mean(need, STATISTICS)}"
        "; a hyper-parameter stands after `*`"
        for need in bound.needs
        if need not in STATISTICS
    ]


def _step_statistic(objective: Bound) -> Bound | None:
    """The function `batch_mean` of the objective's module, where the objective asks for that mean."""
    if "batch_mean" not in objective.needs:
        return None
    function = getattr(importlib.import_module(objective.function.__module__), "batch_mean")  # noqa: B009
    needs, own = plugins.split(function)
    return Bound(function, needs, {k: v for k, v in objective.hyper.items() if k in own})
