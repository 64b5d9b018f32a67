"""Variants: evaluate a modified copy of the unlearned model.

A variant is a module of this package (see `_base.Variant`), chosen in `eval.variants: {name: options}`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from eval.variants._base import ROLES, Score, Variant, Workbench, prefixed
from unlearn import plugins
from unlearn.config import RunConfig
from unlearn.errors import ConfigError
from unlearn.files import digest, read_json, write_json

__all__ = [
    "ROLES", "VARIANTS", "Score", "Variant", "Workbench", "check", "find", "folder_of", "measure",
    "options_of", "prefixed", "sets", "settings_of", "warnings_of",
]  # fmt: skip

KEY = "eval.variants"
VARIANTS = plugins.Kind(
    __name__, "variant", parts=("Options", "SETS", "KEYS", "ATTACK", "check", "identity", "measure")
)


def find(name: str) -> Variant:
    """Return the variant with this name or dotted path.

    Raises:
        ConfigError: there is no such variant.
    """
    return cast(Variant, VARIANTS.find(name, f"{KEY}.{name}"))


def options_of(name: str, given: Mapping[str, Any] | None) -> Any:
    """Return the variant's options with the given values, converted to their types.

    Raises:
        ConfigError: what is wrong with them, by dotted name.
    """
    return plugins.parsed(find(name).Options, given or {}, f"{KEY}.{name}", f"variant {name}")


def check(chosen: Mapping[str, Mapping[str, Any] | None], config: RunConfig) -> list[str]:
    """Return what is wrong with `eval.variants` for a run of this configuration; needs no model."""
    problems = []
    for name, given in chosen.items():
        try:
            own_problems = find(name).check(options_of(name, given), config)
        except ConfigError as error:
            problems += error.problems
        else:
            problems += [f"{KEY}.{name}.{problem}" for problem in own_problems]
    return problems


def warnings_of(config: RunConfig) -> list[str]:
    """Return the warnings of the chosen variants: settings that are allowed but probably not intended."""
    sentences = []
    for name, given in config.eval.variants.items():
        own = getattr(find(name), "warnings", None)
        sentences += (
            [f"{KEY}.{name}: {warning}" for warning in own(options_of(name, given), config)] if own else []
        )
    return sentences


def sets(chosen: Iterable[str]) -> set[str]:
    """Return the training sets that variants read, besides those that the benchmarks score."""
    return {own for name in chosen for own in find(name).SETS}


def settings_of(name: str, config: RunConfig) -> Any:
    """Return what of a run's configuration, besides the method, a variant's models depend on; as JSON."""
    own = getattr(find(name), "settings", None)
    return None if own is None else own(config)


def folder_of(name: str, above: Path) -> Path:
    """Return the folder of a variant's records; one with a dotted path is named by its last part."""
    return above / name.rpartition(".")[2]


def measure(name: str, bench: Workbench, given: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return the variant's metrics, from disk where the same was measured before. A collective.

    `eval/<variant>` is emptied where its records are of other options, and so of other models.

    Raises:
        UserError: it cannot be measured on this model; the message says why.
    """
    options, module = options_of(name, given), find(name)
    folder = folder_of(name, bench.directory / "eval")
    mark, world = folder / "measured.json", bench.world
    left_out = {"variants", "every_steps", "judgement", "select"}
    asked = bench.config.eval.model_dump(mode="json", exclude=left_out)
    if bench.config.eval.select.divides:
        asked["share"] = bench.config.eval.select.share
    made_of = {"options": module.identity(options), "settings": settings_of(name, bench.config)}
    if hasattr(module, "examples"):
        made_of["examples"] = module.examples(bench, options)
    models = digest(made_of)
    compared = {role: weights.key for role, weights in bench.weights.items()}
    own = options.model_dump(mode="json")
    whole = digest(
        {"models": models, "options": own, "eval": asked, "compared": compared, "questions": bench.questions}
    )

    def known() -> dict[str, float] | None:
        stored = read_json(mark) if mark.is_file() else {}
        if stored.get("whole") == whole:
            return {key: math.nan if v is None else v for key, v in stored["metrics"].items()}
        if stored.get("models") != models:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(mark, {"models": models})
        return None

    before = world.on_main(known)
    if before is not None:
        return before
    metrics = module.measure(bench, options)
    world.on_main(lambda: write_json(mark, {"models": models, "whole": whole, "metrics": metrics}))
    return metrics
