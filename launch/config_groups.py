"""The groups of `configs/` with their options: the project's, and those of your own folders.

Folders of your own are, in this order: `--config-dir` and `hydra.searchpath` of the command line, the
variable UNLEARN_CONFIG_PATH, `configs` in the working directory, and those of installed packages
(`unlearn/entry_points.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from unlearn import entry_points
from unlearn.errors import ConfigError
from unlearn.plugins import FOLDERS, named_folders

CONFIGS = (Path(__file__).parent / "configs").resolve()
"""The project's options: in a wheel a folder of this package, in a checkout a link to the one above."""


def own_folders() -> list[Path]:
    """Return the folders of your own, in the order in which they are searched.

    Raises:
        ConfigError: UNLEARN_CONFIG_PATH or an installed package names a folder that does not exist.
    """
    named = named_folders()
    if problems := [f"{FOLDERS}: there is no folder {path}" for path in named if not path.is_dir()]:
        raise ConfigError(problems)
    here = Path.cwd() / "configs"
    # In a checkout they are the project's own, also where a copy of the project is installed.
    own = here.is_dir() and (Path.cwd() / "launch" / "configs").resolve() != here.resolve()
    every = [*named, *([here] if own else []), *entry_points.config_folders()]
    resolved = {path.resolve(): path for path in reversed(every)}
    return [
        path
        for path in dict.fromkeys(resolved[each.resolve()] for each in every)
        if path.resolve() != CONFIGS
    ]


def add_folders(folders: Iterable[tuple[str, str]]) -> None:
    """Search further folders first; processes that this one starts do so too.

    Args:
        folders: Of each the place that names it, for messages, and its path: a folder, `file://` with one, or
            `pkg://` with the name of a package.

    Raises:
        ConfigError: all folders that do not exist.
    """
    paths, problems = [], []
    for place, name in folders:
        try:
            path = _folder(name)
        except ImportError as error:
            problems.append(f"{place}: {error}")
            continue
        if path.is_dir():
            paths.append(str(path))
        else:
            problems.append(f"{place}: there is no such folder")
    if problems:
        raise ConfigError(problems)
    if paths:
        os.environ[FOLDERS] = os.pathsep.join(dict.fromkeys([*paths, *map(str, named_folders())]))


def _folder(name: str) -> Path:
    scheme, separator, rest = name.partition("://")
    if not separator or scheme == "file":
        return Path(os.path.abspath(Path(rest or name).expanduser()))
    if scheme == "pkg":
        return entry_points.package_folder(rest.strip("/").replace("/", "."))
    raise ImportError(f"{scheme}:// is not supported; give file:// with a folder, or pkg:// with a package")


def groups(*, own: bool = True) -> dict[str, list[str]]:
    """Return the configuration groups with their options, without Hydra's; your own unless left out."""
    names = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")
    folders = [CONFIGS, *(own_folders() if own else ())]
    return {
        name: sorted({file.stem for folder in folders for file in (folder / name).glob("*.yaml")})
        for name in names
    }


def option_files(group: str, option: str) -> list[Path]:
    """Return the YAML files with this name, the project's first; more than one means that names collide."""
    files = [folder / group / f"{option}.yaml" for folder in (CONFIGS, *own_folders())]
    return [file for file in files if file.is_file()]


def option_file(group: str, option: str) -> Path:
    """Return the YAML file of an option of a group: the project's, or your own."""
    return next(iter(option_files(group, option)), CONFIGS / group / f"{option}.yaml")


def comment(group: str, option: str, key: str) -> str:
    """Return the value of a comment line `# key: value` of an option's file, "" without it."""
    text = option_file(group, option).read_text(encoding="utf-8")
    line = re.search(rf"^# {key}: *(.+?) *$", text, re.MULTILINE)
    return line[1] if line else ""


def describe(group: str, option: str) -> str:
    """Return the first comment of an option's file that is not a Hydra directive."""
    for line in option_file(group, option).read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
    return ""


def values_of(group: str, option: str) -> dict[str, Any]:
    """Return the keys of an option's file, and of options of its group that it builds on (`defaults`).

    Raises:
        ConfigError: it is no YAML.
    """
    file = option_file(group, option)
    try:
        values = OmegaConf.to_container(OmegaConf.load(file))
    except YAMLError as error:
        raise ConfigError([f"{file}: no valid YAML: {' '.join(str(error).split())}"]) from None
    assert isinstance(values, dict)
    bases = [each for each in values.pop("defaults", None) or () if isinstance(each, str)]
    order = bases if "_self_" in bases else [*bases, "_self_"]
    parts = [values if each == "_self_" else values_of(group, each) for each in order]
    whole = OmegaConf.to_container(OmegaConf.merge(*parts))
    assert isinstance(whole, dict)
    return {str(key): value for key, value in whole.items()}
