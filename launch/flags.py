"""The flags of the command: Hydra's own, read by Hydra's parser, and what those that run nothing print."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.commands import SUBCOMMANDS
from launch.commands.plug_ins import KINDS
from launch.compose import (
    PRIMARY,
    checked,
    compose_run,
    force_overrides,
    given_values,
    initialized,
    search_own_folders,
)
from launch.config_groups import CONFIGS, add_folders, groups, own_folders
from unlearn.errors import ConfigError, UserError, did_you_mean

_MODE = "hydra.mode="
_SEARCH_PATH = "hydra.searchpath="
_VERSIONS = ("torch", "transformers", "deepspeed")
_ABSENT = object()


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; unlearn --help has all flags")


def take_folders(arguments: Sequence[str]) -> list[str]:
    """Search the folders that `--config-dir` names, and return the other arguments.

    Raises:
        UserError: a folder that does not exist, or the flag without one.
    """
    folders, others, words = [], [], iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--config-dir", "-cd"):
            others.append(word)
        elif folder := value if equals else next(words, ""):
            folders.append((f"--config-dir={folder}", folder))
        else:
            raise UserError(f"{word}: name a folder, {flag} DIR")
    add_folders(folders)
    return others


def parse(arguments: Sequence[str]) -> Namespace:
    """Read flags and overrides, and search the folders of `hydra.searchpath`.

    Returns:
        Hydra's attributes; `version` says whether the version is asked for (`verbose`: with the kernels
        that were measured on this machine), `overrides` has no
        `hydra.searchpath` and no `hydra.mode`, which are among the attributes.

    Raises:
        UserError: an unknown flag, a wrong value, two flags that exclude each other, or a folder that
            does not exist.
    """
    parser = get_args_parser()
    parser.__class__ = _Parser
    parser.allow_abbrev = False
    asked = "--version" in arguments  # Hydra's parser would print Hydra's version and exit
    own = ("--version", "-v") if asked else ()
    flags, others = parser.parse_known_args([each for each in arguments if each not in own])
    known = parser._option_string_actions
    for flag in others:
        if not flag.startswith("-"):
            continue  # an override after a flag
        if flag.lstrip("-").replace("-", "_").partition("=")[0] == "dry_run":
            raise UserError(f"{flag}: is a key; write dry_run=true")
        raise UserError(
            f"{flag}: there is no such flag{did_you_mean(flag, known)}; unlearn --help has them all"
        )
    given = [*flags.overrides, *others]
    flags.version, flags.verbose = asked, "-v" in arguments
    flags.overrides = [each for each in arguments if each in given]  # in their order
    _check(flags)
    _settle(flags)
    flags.overrides = given_values(flags.overrides)
    return flags


def _check(flags: Namespace) -> None:
    """
    Raises:
        UserError: flags that cannot be together, or that this command does not have.
    """
    if flags.config_path:
        raise UserError(
            f"--config-path={flags.config_path}: the project's own options are always searched; add yours "
            "with --config-dir, and choose a primary file among them with --config-name"
        )
    if (flags.resolve or flags.package) and not flags.cfg:
        name = "--resolve" if flags.resolve else "--package"
        raise UserError(f"{name}: is of --cfg; add --cfg job")
    asked = {
        "--cfg": flags.cfg, "--info": flags.info, "--multirun": flags.multirun, "--run": flags.run,
        "--shell-completion": flags.shell_completion, "--experimental-rerun": flags.experimental_rerun,
    }  # fmt: skip
    if len(both := [name for name, value in asked.items() if value]) > 1:
        raise UserError(f"{' and '.join(both)}: give one of them")
    if flags.config_name:
        file = f"{flags.config_name}.yaml"
        if (CONFIGS / file).is_file() and (
            same := [each / file for each in own_folders() if (each / file).is_file()]
        ):
            raise UserError(
                f"--config-name={flags.config_name}: {same[0]} has the name of the project's; rename it"
            )
    if flags.experimental_rerun and flags.overrides:
        raise UserError(
            f"--experimental-rerun: makes a run again as it was, without changes ({flags.overrides[0]}); "
            "to change it, give the whole command"
        )


def _settle(flags: Namespace) -> None:
    """Take the folders of `hydra.searchpath` and the mode of Hydra out of the overrides.

    Raises:
        ConfigError: a folder that does not exist.
    """
    folders = []
    for override in [each for each in flags.overrides if each.lstrip("+").startswith((_SEARCH_PATH, _MODE))]:
        key, _, value = override.lstrip("+").partition("=")
        flags.overrides.remove(override)
        if f"{key}=" == _MODE:
            if value not in ("RUN", "MULTIRUN"):
                raise ConfigError([f"{override}: give RUN or MULTIRUN"])
            flags.multirun = flags.multirun or value == "MULTIRUN"
        else:
            folders += [(f"hydra.searchpath: {name}", name) for name in _listed(override, value)]
    add_folders(folders)


def _listed(override: str, value: str) -> list[str]:
    """Return the texts of a list as Hydra's grammar has it.

    Raises:
        ConfigError: it is no list.
    """
    try:
        parsed = OverridesParser.create().parse_override(f"folders={value}").value()
    except HydraException:
        parsed = None
    if not isinstance(parsed, list):
        raise ConfigError([f"{override}: give a list, \"hydra.searchpath=['~/folder']\""])
    return [str(each) for each in parsed]


# -- what runs nothing ------------------------------------------------------------------------------------


def prints(flags: Namespace) -> bool:
    """Print what the flags ask for in place of a run; False where they ask for a run.

    Raises:
        UserError: what they ask for does not exist, or the configuration cannot be composed.
    """
    name = flags.config_name or PRIMARY
    if flags.version:
        ours = {"unlearn-lab": version("unlearn-lab"), **{each: version(each) for each in _VERSIONS}}
        sys.stdout.write("".join(f"{package} {number}\n" for package, number in ours.items()))
        if flags.verbose:
            from unlearn.passes.product_times import describe  # imports torch

            sys.stdout.write("".join(f"{line}\n" for line in describe()))
    elif flags.hydra_help:
        with initialized() as hydra, _explained():
            hydra.hydra_help(None, get_args_parser(), flags)
    elif flags.info:
        with initialized() as hydra, _explained(), _own_logging():
            hydra.show_info(flags.info, name, force_overrides(flags.overrides))
    elif flags.shell_completion:
        _complete(flags.overrides, name)
    else:
        return False
    return True


def show(flags: Namespace, composed: DictConfig, overrides: Sequence[str]) -> None:
    """Print a composed configuration as `--cfg`, `--package` and `--resolve` say.

    Raises:
        UserError: it does not fit the schema, or has no such part.
    """
    from launch.dry_run import deepspeed_yaml

    config = checked(composed, overrides, composed.hydra.runtime.choices)
    package = None if flags.package == "_global_" else flags.package
    shown: Any = OmegaConf.create(config.model_dump(mode="json"))
    if flags.cfg != "job":
        section = _section(composed, resolve=flags.resolve)
        shown = section if flags.cfg == "hydra" else OmegaConf.unsafe_merge(shown, section)
    _write(shown, package)
    if flags.cfg == "job" and package is None:
        sys.stdout.write(deepspeed_yaml(config))


def _section(composed: DictConfig, *, resolve: bool) -> DictConfig:
    """Return Hydra's section of a composed configuration."""
    HydraConfig.instance().set_config(composed)
    if resolve:
        OmegaConf.set_readonly(composed.hydra, None)
        with _explained():
            OmegaConf.resolve(composed)
    return Hydra.get_sanitized_hydra_cfg(composed)


def _write(values: DictConfig | Any, package: str | None) -> None:
    part = values if package is None else OmegaConf.select(values, package, default=_ABSENT)
    if part is _ABSENT:
        above, _, last = (package or "").rpartition(".")
        near = OmegaConf.select(values, above) if above else values
        known = map(str, near) if isinstance(near, DictConfig) else ()
        raise UserError(f"--package {package}: there is no such part{did_you_mean(last, known)}")
    head = f"# @package {package}\n" if package else ""
    plain = "null" if part is None else part
    sys.stdout.write(head + (OmegaConf.to_yaml(part) if isinstance(part, Container) else f"{plain}\n"))


class _SchemaLoader(ConfigLoaderImpl):
    """Loads what completion offers: every key of the schema, also those that no YAML names."""

    def load_configuration(self, config_name: Any, overrides: list[str], *_: Any, **__: Any) -> DictConfig:
        forced = force_overrides(overrides)
        composed = compose_run(forced, hydra=True, name=config_name or PRIMARY)
        config = checked(composed, forced, composed.hydra.runtime.choices)
        values = {**config.model_dump(mode="json"), "hydra": composed.hydra}
        return OmegaConf.create(values, flags={"allow_objects": True})


def _complete(given: Sequence[str], name: str) -> None:
    """Install, remove or answer the completion of a shell."""
    words = [each.partition("=")[0] for each in given]
    if len(words) != 1 or words[0] not in ("install", "uninstall", "query"):
        raise UserError("-sc: give install=bash, uninstall=bash or query=bash (or zsh, fish)")
    if words == ["query"]:
        line = os.environ.get("COMP_LINE", "").split()[1:]
        try:
            line = take_folders(line)
            if line and line[0] in SUBCOMMANDS:
                sys.stdout.write(" ".join(_of_subcommand(*line)) + "\n")
                return
            name = parse(line).config_name or name
        except UserError:  # half of a flag
            known = get_args_parser()._option_string_actions
            sys.stdout.write(" ".join(flag for flag in known if line and flag.startswith(line[-1])) + "\n")
            return
        if len(line) < 2:
            sys.stdout.write("".join(f"{each} " for each in SUBCOMMANDS if each.startswith((*line, "")[0])))
    search_own_folders()
    with _explained():
        loader = _SchemaLoader(create_config_search_path(str(CONFIGS)))
        try:
            Hydra("unlearn", loader).shell_completion(name, list(given))
        except ConfigError:  # the words so far do not fit: there is nothing to offer
            if words[0] != "query":
                raise
        except ValueError as error:
            raise UserError(f"-sc {given[0]}: {' '.join(str(error).split())}") from None


def _of_subcommand(name: str, *words: str) -> list[str]:
    """Return what may follow in place of the last word."""
    known = groups()
    offers = {
        "list": [*known, *KINDS],
        "show": [f"{group}={option}" for group, options in known.items() for option in options],
        "new": ["method", "benchmark", "dataset"],
    }.get(name, [])
    return [offer for offer in offers if offer.startswith(words[-1] if words else "")]


@contextmanager
def _explained() -> Iterator[None]:
    """
    Raises:
        UserError: in place of Hydra's and OmegaConf's errors.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from error


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undo what Hydra sets up to print its information through the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level


def stored_run(named: str) -> Path:
    """Return the folder of a run that `--experimental-rerun` names.

    Raises:
        UserError: it is no folder of a run; a pickle, which Hydra takes, could hold any program.
    """
    path = Path(os.path.expanduser(named))
    if path.suffix in (".pickle", ".pkl"):
        raise UserError(
            f"--experimental-rerun={named}: pickles are not read, since they can hold any program; give the "
            "folder of a run, which has a config.yaml"
        )
    folder = path.parent if path.name == "config.yaml" else path
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--experimental-rerun={named}: this is no folder of a run (it has no config.yaml)")
    return folder
