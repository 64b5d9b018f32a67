"""Data sources. A source is a module of this package with four functions:

- `load(cfg, names)` returns the named sets,
- `available(cfg)` maps the sets it has to their splits,
- `check(cfg)` lists what is wrong, without loading anything,
- `identity(cfg, names)` returns what determines the content of sets, for a run's fingerprint.

The sets are `forget`, `retain`, `full` and `holdout` for training, and those that benchmarks score (their
`SETS`); a source leaves out those that it does not have. A target is trained on `full`, which is the split
that `cfg.full` names, by default all examples; a retain model on `full` with the retain split in `cfg.full`.
`load`, `available` and `identity` follow it. A source may also have

- `before(cfg)`, the forget splits that a model has unlearned earlier,
- `retain_model(cfg)`, the split that a retain model is trained on (by default the retain split), or `BASE`,
- `Options`, a `Section` with what `dataset.options` may hold, checked before any of the functions is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from unlearn import plugins
from unlearn.config import DatasetConfig, Section
from unlearn.data.example import Example
from unlearn.errors import ConfigError

BASE = "base"
"""In place of a split: the base model itself, which was trained on none of them."""


SOURCES = plugins.Kind(__name__, "source", parts=("load", "available", "check", "identity"))


def source(cfg: DatasetConfig) -> ModuleType:
    """Return the module of the dataset's source.

    Raises:
        ConfigError: there is none of that name.
    """
    module: ModuleType = SOURCES.find(cfg.source, f"dataset.source={cfg.source}")
    return module


def check(cfg: DatasetConfig) -> list[str]:
    """Return what is wrong with the configuration of a dataset, as far as it shows without reading a row."""
    try:
        module = source(cfg)
        options = getattr(module, "Options", Section)
        plugins.parsed(options, cfg.options, "dataset.options", f"source {cfg.source}")
    except ConfigError as error:
        return error.problems
    problems: list[str] = module.check(cfg)
    return problems


def load_sets(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, list[Example]]:
    """Return the named sets that the source has, each cut to `dataset.limit` examples if that is set.

    `full` is not cut: a target is trained on it, whose first examples need not be those that are forgotten.
    """
    sets: dict[str, list[Example]] = source(cfg).load(cfg, set(names))
    return {name: rows if name == "full" else rows[: cfg.limit] for name, rows in sets.items()}


def available(cfg: DatasetConfig) -> dict[str, str]:
    """Return the sets that the configured dataset has, each with its split."""
    sets: dict[str, str] = source(cfg).available(cfg)
    return sets


def before(cfg: DatasetConfig) -> list[str]:
    """Return the forget splits that a model has unlearned before the configured one, in order."""
    own = getattr(source(cfg), "before", None)
    return list(own(cfg)) if own is not None else []


def retain_model(cfg: DatasetConfig) -> str | None:
    """Return the split that a retain model is trained on, or `BASE`; None where there is none."""
    own = getattr(source(cfg), "retain_model", None)
    return str(own(cfg)) if own is not None else available(cfg).get("retain")


def identity(cfg: DatasetConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return what determines the content of the named sets."""
    wanted = sorted(set(names) & available(cfg).keys())
    known: dict[str, Any] = source(cfg).identity(cfg, wanted)
    return {"source": cfg.source, "max_length": cfg.max_length, "limit": cfg.limit, "sets": wanted, **known}
