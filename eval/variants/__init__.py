"""What becomes of an unlearned model: evaluations of it after something more was done to it.

A variant is a module of this package (see `base.Variant`), chosen in `eval.variants: {name: options}`.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, cast

from eval.variants.base import Score, Variant, Workbench
from unlearn import plugins
from unlearn.config import RunConfig
from unlearn.errors import ConfigError, did_you_mean
from unlearn.files import digest, read_json, write_json

__all__ = ["Score", "Variant", "Workbench", "check", "find", "measure", "names", "options_of", "sets"]

KEY = "eval.variants"
_BESIDE = ("base", "scoring")


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _BESIDE)


def find(name: str) -> Variant:
    """
    Raises:
        ConfigError: there is no such variant.
    """
    if name not in names():
        raise ConfigError([f"{KEY}.{name}: no such variant{did_you_mean(name, names())}"])
    return cast(Variant, importlib.import_module(f"{__name__}.{name}"))


def options_of(name: str, given: Mapping[str, Any] | None) -> Any:
    """The variant's options with the given ones in place, converted to their types.

    Raises:
        ConfigError: what is wrong with them, by dotted name.
    """
    return plugins.parsed(find(name).Options, given or {}, f"{KEY}.{name}", f"variant {name}")


def check(chosen: Mapping[str, Mapping[str, Any] | None], config: RunConfig) -> list[str]:
    """What is wrong with `eval.variants` for a run of this configuration; needs no model."""
    problems = []
    for name, given in chosen.items():
        try:
            found = find(name).check(options_of(name, given), config)
        except ConfigError as error:
            problems += error.problems
        else:
            problems += [f"{KEY}.{name}.{problem}" for problem in found]
    return problems


def sets(chosen: Iterable[str]) -> set[str]:
    """The training sets that variants read, beside those that the benchmarks score."""
    return {own for name in chosen for own in find(name).SETS}


def measure(name: str, bench: Workbench, given: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The variant's metrics, from disk if the same was measured there. A collective.

    `eval/<variant>` is emptied where what lies there is of other options: its records are of other models.

    Raises:
        UserError: it cannot be measured on this model; the message says why.
    """
    options = options_of(name, given)
    folder = bench.directory / "eval" / name
    mark, world = folder / "measured.json", bench.world
    asked = bench.config.eval.model_dump(mode="json", exclude={"variants", "every_steps"})
    models = digest(find(name).identity(options))
    whole = digest({"models": models, "eval": asked})

    def known() -> dict[str, float] | None:
        found = read_json(mark) if mark.is_file() else {}
        if found.get("whole") == whole:
            return {key: math.nan if v is None else v for key, v in found["metrics"].items()}
        if found.get("models") != models:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(mark, {"models": models})
        return None

    before = world.on_main(known)
    if before is not None:
        return before
    metrics = find(name).measure(bench, options)
    world.on_main(lambda: write_json(mark, {"models": models, "whole": whole, "metrics": metrics}))
    return metrics
