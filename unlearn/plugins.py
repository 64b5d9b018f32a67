"""Find plug-ins by name and check their options: one mechanism for every kind of plug-in.

A plug-in is a module: a file of its kind's package, or of your own. It is named by its file's name or by its
dotted path, from the working directory or from what is installed. If the kind is a function or a class, the
module defines one named after the module (`def top_k`, `class TopK`); a dotted path may also end in the
function or class itself (`my_losses.bounded`).
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from unlearn import entry_points
from unlearn.errors import ConfigError, did_you_mean

S = TypeVar("S", bound=BaseModel)
T = TypeVar("T", bound=BaseModel)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kind:
    """One kind of plug-in: the package of those that ship with the project, and what each of them is.

    `word` names the kind in messages. `parts` are the names that a plug-in must have, `a|b` one of two.
    """

    package: str
    word: str
    form: Literal["module", "function", "class"] = "module"
    parts: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the names of the plug-ins that ship with the project; imports none of them."""
        return list(_modules(self.package))

    def known(self) -> list[str]:
        """Return `names()`, those of installed packages that can be imported, and those of your own plug-ins
        that this process has imported."""
        for name in entry_points.names(self.word):
            with suppress(ConfigError):  # told to whoever uses it
                self.find(name, name)
        return list(
            dict.fromkeys([*self.names(), *(name for package, name in _OWN if package == self.package)])
        )

    def listed(self) -> list[str]:
        """Return `names()` and the names of those of installed packages; imports none of them."""
        return [*self.names(), *entry_points.names(self.word)]

    def find(self, name: str, where: str) -> Any:
        """Return the plug-in with this short name or dotted path.

        where: the place in the configuration that names it, for messages (`dataset.source=tofu`).

        Raises:
            ConfigError: there is none, it cannot be imported, or it lacks a part.
        """
        try:
            if name in _modules(self.package):
                self._refuse_same_name(name)
                return self._of_module(importlib.import_module(f"{self.package}.{name}"))
            if (self.package, name) not in _OWN:
                _OWN[self.package, name] = self._imported(name)
            return _OWN[self.package, name]
        except _Missing:
            near = did_you_mean(name, self.listed(), _own_files())
            own = f"; one of your own is {name}.py in {' or '.join(_own_folders())}, or has a dotted path"
            raise ConfigError([f"{where}: no such {self.word}{near}{own}"]) from None
        except _Unfit as error:
            raise ConfigError([f"{where}: {error}"]) from None
        except ConfigError as error:
            raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from None
        except Exception as error:  # a module of your own may raise anything
            why = f"{type(error).__name__}: {error}" if not isinstance(error, _WHYS) else str(error)
            raise ConfigError([f"{where}: cannot be imported ({why})"]) from error

    def _refuse_same_name(self, name: str) -> None:
        """
        Raises:
            _Unfit: an installed package has a plug-in with the name of one of the project's.
        """
        if (entry := entry_points.find(self.word, name)) is not None:
            package = entry_points.package_of(entry)
            raise _Unfit(
                f"{package} has an entry point {entry.name} too: uninstall it, or give its own by the dotted "
                f"path {entry.value.replace(':', '.')}"
            )

    def _imported(self, name: str) -> Any:
        if (entry := entry_points.find(self.word, name)) is not None:
            plug_in = entry.load()
            return self._member(plug_in, name) if inspect.ismodule(plug_in) else self._checked(plug_in, name)
        if not _NAMED_BY_DATA.get():
            _search_own_folders()
            return self._by_path(name)
        top = name.partition(".")[0]
        with _own_folders_searched(search=_is_own(top, packages=False)):
            try:
                return self._by_path(name)
            except ModuleNotFoundError as error:
                raise _Unfit(
                    f"{name} is named by data, for which no folder of your own is imported ({error}): "
                    "install its package, or put the folder above it on PYTHONPATH (for a model: "
                    "model.trust_remote_code=true)"
                ) from None

    def _by_path(self, name: str) -> Any:
        above, _, last = name.rpartition(".")
        if not above and not _is_own(name):
            raise _Missing
        try:
            return self._of_module(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if not above or not f"{name}.".startswith(f"{error.name}."):
                raise
        plug_in = getattr(importlib.import_module(above), last)
        return self._of_module(plug_in) if isinstance(plug_in, ModuleType) else self._checked(plug_in, name)

    def _of_module(self, module: ModuleType) -> Any:
        return self._member(module, module.__name__.rpartition(".")[2])

    def _member(self, module: ModuleType, last: str) -> Any:
        """Return the plug-in of a module: itself, or its member with this name."""
        if self.form == "module":
            return self._checked(module, last)
        member = last if self.form == "function" else class_name(last)
        return self._checked(getattr(module, member), last)

    def _checked(self, plug_in: Any, name: str) -> Any:
        """
        Raises:
            _Unfit: it is not of this kind.
        """
        if not _IS[self.form](plug_in):
            raise _Unfit(f"{name} is not a {self.form}; a {self.word} must be one")
        lacking = [part for part in self.parts if not any(hasattr(plug_in, one) for one in part.split("|"))]
        if lacking:
            parts = ", ".join(part.replace("|", " or ") for part in lacking)
            raise _Unfit(f"{name} has no {parts}, which a {self.word} needs")
        return plug_in


def class_name(file: str) -> str:
    """Return the name of the class that is named after a module (`TopK` of `top_k`)."""
    return "".join(part.capitalize() for part in file.split("_"))


_OWN: dict[tuple[str, str], Any] = {}
"""Plug-ins of your own that this process has found, by the package of their kind and their name."""
_IS: Mapping[str, Callable[[Any], bool]] = {
    "module": inspect.ismodule,
    "class": inspect.isclass,
    "function": lambda one: callable(one) and not inspect.isclass(one),
}
_WHYS = (ImportError, AttributeError)
"""Errors whose text says what is wrong without the name of their class."""


_NAMED_BY_DATA: ContextVar[bool] = ContextVar("named by data", default=False)


@contextmanager
def named_by_data() -> Iterator[None]:
    """Import no package of your own folders meanwhile: names are of files of unknown origin, whose folder may
    be one.

    What ships, is installed, or was imported before is found; so is a single file in your own folders.
    """
    before = _NAMED_BY_DATA.set(True)
    try:
        yield
    finally:
        _NAMED_BY_DATA.reset(before)


@contextmanager
def _own_folders_searched(*, search: bool) -> Iterator[None]:
    """Let Python search your own folders meanwhile, or not: those on PYTHONPATH it always searches."""
    before = sys.path[:]
    if search:
        _search_own_folders()
    else:
        stated = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        own = {os.path.realpath(each) for each in _own_folders()}
        own -= {os.path.realpath(each) for each in stated if each}
        sys.path[:] = [each for each in before if os.path.realpath(each or os.getcwd()) not in own]
        importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


class _Missing(Exception):
    """Neither the package nor the working directory has a module of the name."""


class _Unfit(Exception):
    """The object of this name is no plug-in of the kind."""


@cache
def _modules(package: str) -> tuple[str, ...]:
    paths = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(paths))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def cached(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a function that reads from plug-ins, until a further one of your own is found."""
    results, known = cache(function), [tuple(_OWN)]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if known[0] != tuple(_OWN):
            results.cache_clear()
            known[0] = tuple(_OWN)
        return results(*args, **kwargs)  # type: ignore[arg-type]

    return call


FOLDERS = "UNLEARN_CONFIG_PATH"
"""The variable with folders of options of your own, separated as in PATH; plug-ins may lie beside them."""


def named_folders() -> list[Path]:
    """Return the folders that the variable names, as absolute paths; they may be missing."""
    named = (each for each in os.environ.get(FOLDERS, "").split(os.pathsep) if each)
    return [Path(each).expanduser().absolute() for each in named]


def _own_folders() -> list[str]:
    """Return the folders where plug-ins of your own are looked for: the working directory, and those named.

    A run's worker processes have the working directory and the variables of the command.
    """
    return [os.getcwd(), *map(str, named_folders())]


def _search_own_folders() -> None:
    """Let Python import modules of your own folders, after all others."""
    for folder in _own_folders():
        if folder not in sys.path and not (folder == os.getcwd() and "" in sys.path):
            sys.path.append(folder)
    importlib.invalidate_caches()


def _own_files() -> dict[str, str]:
    """Return the names of modules in your own folders, for near misses."""
    files = (file for folder in _own_folders() if os.path.isdir(folder) for file in os.listdir(folder))
    return {name: name for name in (file.removesuffix(".py") for file in files) if _is_own(name)}


def _is_own(name: str, *, packages: bool = True) -> bool:
    """Return whether a file in your own folders has this name, or with `packages` a folder with modules."""
    places = [os.path.join(folder, name) for folder in _own_folders()]
    return any(
        os.path.isfile(f"{each}.py") or (packages and os.path.isfile(os.path.join(each, "__init__.py")))
        for each in places
    )


# -- options ---------------------------------------------------------------------------------------------


def split(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, inspect.Parameter]]:
    """Return the names of the positional parameters of a function, and its keyword-only parameters."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY), keyword


@cache
def keywords(function: Callable[..., Any]) -> type[BaseModel]:
    """Return the keyword-only parameters of a function or a class as a model of its options.

    Values are taken as they are written: no text for a number, no number for true or false. A number is
    finite, and within the bounds of its annotation (`PositiveFloat`).
    """
    known = split(function)[1]
    types = {name: Any if p.annotation is p.empty else p.annotation for name, p in known.items()}
    fields: Any = {
        name: (types[name], ... if p.default is p.empty else p.default) for name, p in known.items()
    }
    return create_model("Options", __config__=_AS_WRITTEN, **fields)


_AS_WRITTEN = ConfigDict(
    extra="forbid", frozen=True, strict=True, allow_inf_nan=False, arbitrary_types_allowed=True,
    protected_namespaces=(),
)  # fmt: skip


def parsed(model: type[T], given: Mapping[str, Any], key: str, owner: str, near: Iterable[str] = ()) -> T:
    """Return options with the given values converted to their types. Each is parsed once in a process.

    key: where they stand in the configuration. owner: whose options they are, for messages. near: other names
    that may be meant there.

    Raises:
        ConfigError: every key that does not exist, with near misses, every one that is lacking, and every
            value that does not fit, by dotted name.
    """
    stated = model, repr(given), key  # all of its values
    if stated not in KNOWN_OPTIONS:
        KNOWN_OPTIONS[stated] = parse_uncached(model, given, key, owner, near)
    options = KNOWN_OPTIONS[stated]
    assert isinstance(options, model)
    return options


KNOWN_OPTIONS: dict[tuple[type[BaseModel], str, str], BaseModel] = {}
"""The options that this process has parsed."""


def parse_uncached(
    model: type[T], given: Mapping[str, Any], key: str, owner: str, near: Iterable[str] = ()
) -> T:
    """Parse options anew, as `parsed` does once.

    Raises:
        ConfigError: see `parsed`.
    """
    known = list(model.model_fields)
    problems = [
        f"{key}.{name}={value}: {owner} has no option {name}{did_you_mean(str(name), [*known, *near])}"
        for name, value in given.items()
        if name not in known
    ]
    try:
        options = model.model_validate({name: v for name, v in given.items() if name in known})
    except ValidationError as error:
        problems += _explained(model, error, given, key, owner)
    if problems:
        raise ConfigError(problems)
    return options


def section_options(section: BaseModel, model: type[T], key: str, owner: str) -> T:
    """Return the options of the plug-in that a section names: the section's further keys, as in `parsed`.

    Raises:
        ConfigError: see `parsed`; the section's own keys are near misses too.
    """
    return parsed(model, section.model_extra or {}, key, owner, type(section).model_fields)


def completed(section: S, options: BaseModel) -> S:
    """Return a section with every option of its plug-in among its further keys, as JSON values."""
    return section.model_copy(update=options.model_dump(mode="json"))


def _explained(
    model: type[BaseModel], error: ValidationError, given: Mapping[str, Any], key: str, owner: str
) -> list[str]:
    """Return one sentence for each value that does not fit, however many types it was tried as."""
    reasons: dict[str, list[str]] = {}
    for each in error.errors():
        message = each["msg"].removeprefix("Value error, ")
        loc = [str(part) for part in each["loc"]]
        if not loc:  # of the options together
            reasons[f"{key}.{message}"] = []
        elif each["type"] == "extra_forbidden":
            near = did_you_mean(loc[-1], _fields(model.model_fields[loc[0]].annotation, len(loc)))
            reasons[f"{key}.{'.'.join(loc)}={each['input']}: {owner} has no option {loc[-1]}{near}"] = []
        elif each["type"] == "missing":
            reasons[f"{key}.{'.'.join(loc)} is not set: {owner} needs it"] = []
        else:
            nested = isinstance(given.get(loc[0]), Mapping | list | tuple)
            name = ".".join(loc) if nested and each["input"] != given[loc[0]] else loc[0]
            whys = reasons.setdefault(f"{key}.{name}={each['input']!r}", [])
            message = "give a list" if each["type"] in ("sequence_str", "tuple_type") else message
            whys.append(message if message[:2].isupper() else message[0].lower() + message[1:])
    return [f"{head}: {' or '.join(dict.fromkeys(whys))}" if whys else head for head, whys in reasons.items()]


def _fields(annotation: Any, depth: int) -> list[str]:
    """Return the options inside an option that is a model."""
    inner = depth == 2 and isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [*annotation.model_fields] if inner else []
