"""What installed packages add: the entry-point group `unlearn_lab.plugins`.

A package names each of its plug-ins `<kind>.<name>`, and each of its folders of options `configs.<any name>`:

    [project.entry-points."unlearn_lab.plugins"]
    "objective.bounded" = "my_method.losses:bounded"
    "benchmark.spelling" = "my_method.spelling"
    "configs.my_method" = "my_method.configs"

The kinds are `objective`, `weighting`, `rule`, `intervention`, `source`, `benchmark`, `variant`, `probe` and
`tracker`.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

from unlearn.errors import ConfigError

GROUP = "unlearn_lab.plugins"
_CONFIGS = "configs"


@cache
def _entries() -> tuple[EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def names(kind: str) -> list[str]:
    """Return the names of a kind's plug-ins in installed packages, sorted; imports none of them."""
    prefix = f"{kind}."
    return sorted({each.name.removeprefix(prefix) for each in _entries() if each.name.startswith(prefix)})


def find(kind: str, name: str) -> EntryPoint | None:
    """Return the entry point of a plug-in, None where no installed package has it.

    Raises:
        ConfigError: several packages have it.
    """
    matching = [each for each in _entries() if each.name == f"{kind}.{name}"]
    if len(matching) > 1:
        packages = " and ".join(sorted(package_of(each) for each in matching))
        raise ConfigError([f"{kind} {name}: {packages} both have it; uninstall one, or give its dotted path"])
    return matching[0] if matching else None


def package_of(entry: EntryPoint) -> str:
    """Return the name of the distribution that has an entry point."""
    return entry.dist.name if entry.dist else entry.module


def config_folders() -> list[Path]:
    """Return the folders of options in installed packages, sorted by the names of their entry points.

    Raises:
        ConfigError: an entry point names no folder.
    """
    entries = sorted(each for each in _entries() if each.name.split(".")[0] == _CONFIGS)
    return [_folder(each) for each in entries]


def _folder(entry: EntryPoint) -> Path:
    try:
        return package_folder(entry.value)
    except ImportError as error:
        raise ConfigError([f"entry point {entry.name} of {package_of(entry)}: {error}"]) from error


def package_folder(package: str) -> Path:
    """Return the folder of a package, which need not have an `__init__.py`; it is not imported.

    Raises:
        ImportError: there is no such package, or a package above it cannot be imported.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"there is no package {package}")
    return Path(next(iter(spec.submodule_search_locations)))
