"""Where examples come from. A source is a module of this package with four functions:

`load(cfg, names)` gives the named sets, `available(cfg)` maps the sets it has to their splits, `check(cfg)`
lists what is wrong without loading anything, and `identity(cfg, names)` says what determines the content of
sets, for a run's fingerprint. The sets are `forget`, `retain`, `full` and `holdout` for training, and those
that benchmarks score (their `SETS`); a source leaves out what it does not have. It may have two more:
`before(cfg)`, the forget splits that a model has unlearned earlier, and `retain_model(cfg)`, the split that a
retain model is trained on (the retain split otherwise) or `BASE`, and a class `Options`, what
`dataset.options` may hold: `check` and the others are called when that fits.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from unlearn import plugins
from unlearn.config import DatasetConfig, Section
from unlearn.data.example import Example
from unlearn.errors import ConfigError, did_you_mean

BASE = "base"
"""In place of a split: the base model itself, which was trained on none."""


def source(cfg: DatasetConfig) -> ModuleType:
    """The module of the dataset's source.

    Raises:
        ConfigError: there is none of that name.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "tables"]
    if cfg.source not in known:
        raise ConfigError([f"dataset.source={cfg.source}: no such source{did_you_mean(cfg.source, known)}"])
    return importlib.import_module(f"{__name__}.{cfg.source}")


def check(cfg: DatasetConfig) -> list[str]:
    """What is wrong with the configuration of a dataset, as far as it shows without reading a row."""
    try:
        module = source(cfg)
        plugins.parsed(
            getattr(module, "Options", Section), cfg.options, "dataset.options", f"source {cfg.source}"
        )
    except ConfigError as error:
        return error.problems
    problems: list[str] = module.check(cfg)
    return problems


def load_sets(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    """The named sets that the source has, each cut to `dataset.limit` examples if that is set."""
    sets: dict[str, list[Example]] = source(cfg).load(cfg, set(names))
    return {name: rows[: cfg.limit] for name, rows in sets.items()}


def available(cfg: DatasetConfig) -> dict[str, str]:
    """The sets the dataset has as configured, and the split each of them is."""
    sets: dict[str, str] = source(cfg).available(cfg)
    return sets


def before(cfg: DatasetConfig) -> list[str]:
    """The forget splits that a model has unlearned before the configured one, in their order."""
    own = getattr(source(cfg), "before", None)
    return list(own(cfg)) if own is not None else []


def retain_model(cfg: DatasetConfig) -> str | None:
    """The split that a retain model is trained on, or `BASE`; None where there is none."""
    own = getattr(source(cfg), "retain_model", None)
    return str(own(cfg)) if own is not None else available(cfg).get("retain")


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    """What determines the content of the named sets."""
    wanted = sorted(set(names) & available(cfg).keys())
    known: dict[str, Any] = source(cfg).identity(cfg, wanted)
    return {"source": cfg.source, "max_length": cfg.max_length, "limit": cfg.limit, "sets": wanted, **known}
