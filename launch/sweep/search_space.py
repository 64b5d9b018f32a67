"""The search space of a search: ranges in Hydra's override grammar as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from unlearn.errors import UserError


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, by key as in an override (`++method.lr`), and the overrides that all trials share."""

    distributions: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*(f"{key}={value}" for key, value in params.items()), *self.fixed]

    def grid(self) -> list[dict[str, Any]]:
        """Return all points of the space; the last key varies fastest.

        Raises:
            UserError: a range is continuous.
        """
        values = [_values(key, distribution) for key, distribution in self.distributions.items()]
        return [dict(zip(self.distributions, point, strict=True)) for point in product(*values)]


def search_space(overrides: Sequence[str]) -> SearchSpace:
    """Return the space of overrides, of which the last of each key counts.

    Raises:
        UserError: a range cannot be searched.
    """
    last: dict[str, Override] = {}
    for override in OverridesParser.create().parse_overrides([*overrides]):
        key = override.get_key_element().lstrip("+")
        last.pop(key, None)
        last[key] = override
    swept = {o.get_key_element(): o for o in last.values() if o.is_sweep_override()}
    distributions = {key: _distribution(key, override) for key, override in swept.items()}
    fixed = (str(override.input_line) for override in last.values() if not override.is_sweep_override())
    return SearchSpace(distributions, tuple(fixed))


def _distribution(key: str, override: Override) -> BaseDistribution:
    sweep = override.value()
    try:
        if override.is_choice_sweep():
            choices: Any = override.sweep_iterator(transformer=Transformer.encode)
            return CategoricalDistribution([*choices])
        if isinstance(sweep, RangeSweep):
            values: list[Any] = [*override.sweep_iterator()]  # Hydra leaves out the end of a range
            values.sort()
            return _numbers(values[0], values[-1], step=abs(sweep.step))
        if isinstance(sweep, IntervalSweep):
            return _numbers(sweep.start, sweep.end, log="log" in sweep.tags)
    except (HydraException, ValueError, IndexError) as error:
        raise UserError(f"{override.input_line}: {str(error) or 'it is empty'}") from None
    raise UserError(f"{override.input_line}: a search needs values, a range or an interval")


def _numbers(low: Any, high: Any, *, step: Any = None, log: bool = False) -> BaseDistribution:
    if all(isinstance(number, int) for number in (low, high, step or 1)):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _values(key: str, distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    step = distribution.step
    if step is None or distribution.log:
        raise UserError(f"{key.lstrip('+')}: a grid needs values or a range, not a continuous interval")
    count = round((distribution.high - distribution.low) / step) + 1
    return [distribution.low + place * step for place in range(count)]
