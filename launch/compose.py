"""Compose and check a configuration from command line arguments.

Overrides are forced (`++key=value`), so that any key of the schema can be set even if no YAML names it; the
schema then refuses unknown keys, with near misses. Hydra still sees every override, for sweeps.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from launch.config_groups import CONFIGS, groups, option_files, own_folders, values_of
from launch.schema_errors import explained
from launch.tracking import trackers
from unlearn import probes
from unlearn.config import RunConfig
from unlearn.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

# configs/hydra has options with the names of plugins, whose schemas apply to them.
warnings.filterwarnings("ignore", r"\s*'hydra/[a-z/]+' is validated against ConfigStore schema", UserWarning)

_PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher, of the extra `sweeps`",
    "hydra/launcher/slurm": "hydra-submitit-launcher, of the extra `slurm`",
    "hydra/sweeper/optuna": "optuna cmaes, of the extra `sweeps`",
}
PRIMARY = "config"
"""The primary file of the project, which `--config-name` replaces."""


class OwnFolders(SearchPathPlugin):
    """Lets Hydra search the folders of your own, after the project's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in own_folders():
            search_path.append("yours", f"file://{folder}")


def search_own_folders() -> None:
    """Let Hydra search the folders of your own from now on, wherever it composes."""
    Plugins.instance().register(OwnFolders)


@contextmanager
def initialized() -> Iterator[Hydra]:
    """Initialise Hydra for one composition."""
    search_own_folders()
    with initialize_config_dir(str(CONFIGS), job_name="unlearn", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra


_ONE_OF = ("model", "dataset", "method", "hardware", "probe", "tracker")
"""Groups of which a run has one option: of several Hydra would merge all values under the last one's name."""


def force_overrides(arguments: Sequence[str]) -> list[str]:
    """Turn `key=value` into `++key=value`, except for groups, Hydra's own keys and overrides with a sign.

    Raises:
        ConfigError: a group has no such option, all of them at once.
    """
    forced, problems = [], []
    known = groups()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if re.match(r"\++hydra\.launcher\.", key):  # a launcher may accept any key and ignore it
            forced.append(argument.lstrip("+"))
        elif argument.startswith("-") or not equals or key.startswith(("+", "~", "hydra.", "hydra/")):
            forced.append(argument)
        elif key in known:
            problems += [
                f"{key}={option}: there is no configs/{key}/{option}.yaml{_instead(key, option, known[key])}"
                for option in _options(value)
                if option not in known[key] and option != "null"
            ]
            problems += _doubles(key, _options(value))
            if value.startswith("[") and key in _ONE_OF and len(_options(value)) > 1:
                each = ",".join(_options(value))
                problems.append(
                    f"{argument}: a run has one {key}; for a run of each, unlearn -m {key}={each}"
                )
            forced.append(argument)
        else:
            forced.append(f"++{argument}")
    if problems:
        raise ConfigError(problems)
    return forced


def _doubles(group: str, options: Iterable[str]) -> list[str]:
    """Return a message for each option of your own that has the name of one of the project's."""
    return [
        f"{group}={option}: {files[1]} has the name of {files[0]}; choose another name"
        for option in options
        if len(files := option_files(group, option)) > 1
    ]


def _instead(group: str, option: str, known: Sequence[str]) -> str:
    """Return what may be meant by an option that does not exist, and the folders of your own that lack it."""
    folders = own_folders()
    for file in (
        folder / place for folder in folders for place in (f"{option}.yaml", f"{group}/{option}.yml")
    ):
        if file.is_file() and file.suffix == ".yml":
            return f"; name {file} {option}.yaml"
        if file.is_file():
            return f"; put {file} into a folder {group}, or name the folder above {file.parent}"
    searched = f" (nor in {', '.join(map(str, folders))})" if folders else ""
    return f"{searched}{did_you_mean(option, known)}"


def given_values(arguments: Sequence[str]) -> list[str]:
    """Expand the home directory in `key=~/value`, which a shell expands only at the beginning of a word.

    Raises:
        ConfigError: an argument is not valid UTF-8, or names a user that does not exist.
    """
    expanded, problems = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        parts = value.split(",")
        if len(parts) > 1 and not re.search(r"[\"'\[{(]", value) and any(p.startswith("~") for p in parts):
            try:  # several values
                each = [given_values([f"{key}={part}"])[0].partition("=")[2] for part in parts]
            except ConfigError as error:
                problems += error.problems
                continue
            expanded.append(f"{key}={','.join(each)}")
            continue
        bare = value.strip("\"'")
        if any("\ud800" <= character <= "\udfff" for character in argument):
            shown = argument.encode(errors="surrogateescape").decode(errors="replace")
            problems.append(f"{shown}: this is not UTF-8 text")
        elif equals and bare.startswith("~") and not argument.startswith("~"):
            if (whole := os.path.expanduser(bare)) == bare:
                problems.append(f"{argument}: there is no such home directory")
            elif any(quote in value for quote in "\"'") or re.fullmatch(r"[\w./-]+", whole):
                expanded.append(f"{key}={value.replace(bare, whole)}")
            else:
                expanded.append(f"{key}={QuotedString(whole, Quote.single).with_quotes()}")
        else:
            expanded.append(argument)
    if problems:
        raise ConfigError(problems)
    return expanded


_ONE_VALUE = "; quote a comma within one value, key='\"a,b\"', and write a list in brackets, key='[a,b]'"


def refuse_sweep(overrides: Sequence[str]) -> None:
    """Check that no key has several values where one run is requested.

    Raises:
        ConfigError: all overrides with several values.
    """
    problems = [
        f"{(override.input_line or '').lstrip('+')}: several values are a sweep, which needs -m "
        f"(unlearn -m …){'' if override.key_or_group in _ONE_OF else _ONE_VALUE}"
        for override in _parsed(overrides)
        if override.is_sweep_override()
    ]
    if problems:
        raise ConfigError(problems)


def compose_run(overrides: Sequence[str], *, hydra: bool = False, name: str = PRIMARY) -> DictConfig:
    """Compose the configuration of forced overrides; of a sweep, its first element.

    hydra: whether to return Hydra's section too. name: of the primary file, without `.yaml`.

    Raises:
        ConfigError: an override cannot be parsed or composed.
    """
    try:
        single = [_first(override) for override in _parsed(overrides)]
        with initialized():
            return compose(name, overrides=single, return_hydra_config=hydra)
    except YAMLError as error:
        raise ConfigError([f"an option is no valid YAML: {' '.join(str(error).split())}"]) from None
    except (HydraException, OmegaConfBaseException) as error:
        message = " ".join(str(error).split())
        if isinstance(error, MissingConfigException) and error.missing_cfg_file == name:
            raise ConfigError([f"--config-name={name}: {_no_primary(name)}"]) from None
        if (key := re.search(r"Could not override '([\w.]+)'", message)) is not None:
            raise ConfigError([f"{key[1]}: there is no such key{_near(key[1], overrides)}"]) from None
        if option := re.search(
            r"Could not find '(hydra/\S+)/(\S+)' Available options in \S+: (.*?) Config", message
        ):
            near = did_you_mean(option[2], option[3].split())
            raise ConfigError([f"{option[1]}={option[2]}: there is no such option{near}"]) from None
        missing = next((kind for kind in _PLUGINS if kind in message), None)
        cause = f": {str(error.__cause__).splitlines()[0]}" if str(error.__cause__ or "") else ""
        raise ConfigError([message + cause + (f" ({_install(missing)})" if missing else "")]) from None


def _no_primary(name: str) -> str:
    folders = [CONFIGS, *own_folders()]
    near = did_you_mean(name, {file.stem for folder in folders for file in folder.glob("*.yaml")})
    return f"there is no {name}.yaml in {', '.join(map(str, folders))}{near}"


def _near(key: str, overrides: Sequence[str]) -> str:
    """Suggest keys of Hydra's section where a key of it does not exist."""
    others = [override for override in overrides if override.partition("=")[0].lstrip("+") != key]
    above, _, last = key.rpartition(".")
    section = OmegaConf.select(compose_run(others, hydra=True), above) if above else None
    return did_you_mean(last, map(str, section)) if isinstance(section, DictConfig) else ""


def check_plugins(composed: DictConfig) -> None:
    """Check that the chosen launcher and sweeper are installed.

    Raises:
        ConfigError: one is not.
    """
    chosen = {f"hydra/{kind}": composed.hydra[kind]._target_ for kind in ("launcher", "sweeper")}
    options = {group: composed.hydra.runtime.choices[group] for group in chosen}
    launcher = str(options["hydra/launcher"])
    if launcher.startswith("submitit_"):
        raise ConfigError(
            [f"hydra/launcher={launcher}: use hydra/launcher=slurm, which checkpoints and continues"]
        )
    problems = [
        f"{group}={options[group]} is not installed: {_install(f'{group}/{options[group]}')}"
        for group, target in chosen.items()
        if (package := _package(target)) and find_spec(package) is None
    ]
    if problems:
        raise ConfigError(problems)


def _package(target: str) -> str | None:
    """The optional package that a launcher or sweeper needs, from the path of its class."""
    if target.startswith("hydra_plugins."):
        return ".".join(target.split(".")[:2])
    return "optuna" if "optuna" in target else None


def _install(choice: str) -> str:
    return f"pip install {_PLUGINS.get(choice, 'its plugin')}"


def checked(
    config: DictConfig, overrides: Sequence[str] = (), choices: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the typed configuration, with every option of its probe and of its tracker.

    Options that do not fit are left as they are, for `validate.check` to report.

    Raises:
        ConfigError: all unknown keys, wrong types and missing values at once, with the file of each.
    """
    doubles: list[str] = []
    for group, chosen in (choices or {}).items():
        if group in groups():
            doubles += _doubles(group, [chosen] if isinstance(chosen, str) else chosen or ())
    if doubles:
        raise ConfigError(doubles)
    try:
        science = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain = OmegaConf.to_container(science, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError([" ".join(str(error).split())]) from None
    assert isinstance(plain, dict)
    _name_probed_method(plain)
    try:
        run = RunConfig.model_validate(plain)
    except ValidationError as error:
        given = {re.sub(r"^\++", "", o.split("=")[0]) for o in overrides}
        raise ConfigError(explained(error.errors(), given, choices or {}, plain)) from None
    with suppress(ConfigError):
        run = run.model_copy(update={"probe": probes.completed(run.probe)})
    with suppress(ConfigError):
        run = run.model_copy(update={"tracker": trackers.completed(run.tracker)})
    return run


def _name_probed_method(plain: dict[Any, Any]) -> None:
    """Put the preset's keys in place of the name in `probe.method`.

    Raises:
        ConfigError: there is no such preset.
    """
    probe = plain.get("probe")
    if isinstance(probe, dict) and isinstance(name := probe.get("method"), str):
        if name not in (known := groups()["method"]):
            raise ConfigError(
                [f"probe.method={name}: there is no configs/method/{name}.yaml{did_you_mean(name, known)}"]
            )
        probe["method"] = values_of("method", name)


def check_swept(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Check every value that a grid gives a key by the key's own type, before any job begins.

    An option of a plug-in of the method has the type that the plug-in declares, unless the grid has several
    plug-ins. What depends on other keys is checked by each job.

    Raises:
        ConfigError: all values that are none of their keys.
    """
    science = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    problems: list[str] = []
    parsed = _parsed(overrides)
    keys = [each.get_key_element().lstrip("+") for each in parsed if each.is_sweep_override()]
    for override in parsed:
        key = override.get_key_element().lstrip("+")
        if not override.is_sweep_override() or key in groups() or key.startswith(("~", "hydra")):
            continue
        if isinstance(override.value(), IntervalSweep):
            continue
        for value in override.sweep_string_iterator():
            one = OmegaConf.merge(science)
            single = OverridesParser.create().parse_override(f"{key}={value}")
            OmegaConf.update(one, key, single.value(), merge=False, force_add=True)
            assert isinstance(one, DictConfig)
            plain = OmegaConf.to_container(one, resolve=True)
            assert isinstance(plain, dict)
            problems += _problems_of(key, plain, keys)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _problems_of(key: str, plain: dict[Any, Any], swept: Sequence[str]) -> list[str]:
    """Return what the schema, and the plug-ins of the method, say of one key and its value.

    swept: the keys of the grid. A value that one plug-in refuses may be meant for another.
    """
    try:
        _name_probed_method(plain)
        config = RunConfig.model_validate(plain)
    except ValidationError as error:
        own = [
            each
            for each in error.errors()
            if f"{'.'.join(map(str, each['loc']))}.".startswith(f"{key}.") and each["type"] != "missing"
        ]
        return explained(own, {key}, {}, plain)
    except ConfigError as error:
        return error.problems
    sections = [each.removesuffix(".objective").removesuffix(".name") for each in swept if each != key]
    if not key.startswith("method.") or any(f"{key}.".startswith(f"{each}.") for each in sections):
        return []
    from unlearn.terms import bind  # imports torch

    try:
        bind(config.method)
    except ConfigError as error:
        return [each for each in error.problems if each.startswith((f"{key}=", f"{key}."))]
    return []


def yaml_of(config: BaseModel) -> str:
    """Return the whole configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException as error:
            shown, why = override.lstrip("+"), str(error).splitlines()[0]
            if "=" in shown:
                problems.append(f"{shown}: cannot be parsed ({why}); quote it?")
            else:
                problems.append(f"{shown}: write a setting as key=value")
    if problems:
        raise ConfigError(problems)
    return parsed


def _options(value: str) -> list[str]:
    """Return the options that a value names: one, several to sweep (a,b), or a combination ([a,b])."""
    return re.findall(r"[^\[\],\s]+", value)


def _first(override: Override) -> str:
    line: str = override.input_line or ""
    if not override.is_sweep_override():
        return line
    interval = override.value()
    if isinstance(interval, IntervalSweep):  # a search range
        first: Any = interval.start
    else:
        first = next(iter(override.sweep_string_iterator()))
    return f"{line.partition('=')[0]}={first}"
