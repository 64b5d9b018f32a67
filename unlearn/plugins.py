"""What stands in a configuration against the signature of what it names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from unlearn.errors import ConfigError, did_you_mean

T = TypeVar("T")


def modules(package: ModuleType) -> list[str]:
    """The public modules of a package."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def find(name: str, package: ModuleType, kind: str) -> Callable[..., Any]:
    """The function of a package's module of the same name, or one of your own by dotted path.

    Raises:
        LookupError: there is none.
    """
    module, _, function = name.rpartition(".")
    if not module:
        if name not in modules(package):
            raise LookupError(f"no such {kind}{did_you_mean(name, modules(package))}")
        module, function = f"{package.__name__}.{name}", name
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"cannot import it ({error})") from None
    return found


def split(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, inspect.Parameter]]:
    """Names of the positional parameters, and the keyword-only ones."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY), keyword


def misfits(
    key: str, name: str, known: Mapping[str, inspect.Parameter], given: Mapping[str, Any], kind: str
) -> list[str]:
    """What is wrong with the keywords given to `name` under `key`: unknown, unset, of a wrong type."""
    unknown = [
        f"{key}.{k}={v}: {name} has no {kind} {k}{did_you_mean(k, known)}"
        for k, v in given.items()
        if k not in known
    ]
    unset = [
        f"{key}.{p.name} is not set: {name} needs it"
        for p in known.values()
        if p.default is p.empty and p.name not in given
    ]
    types = {k: known[k].annotation for k in given if k in known}
    return unknown + unset + ill_typed(key, name, types, given)


def ill_typed(key: str, name: str, types: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Which of the values are not what they ought to be."""
    return [
        f"{key}.{k}={given[k]!r}: {name} wants {wanted} here"
        for k, annotation in types.items()
        if (wanted := _wanted(annotation, given[k]))
    ]


def _wanted(annotation: Any, value: Any) -> str | None:
    """What a value ought to have been; None where it fits."""
    if annotation in (float, int) and (isinstance(value, bool) or not isinstance(value, int | float)):
        return "a number"
    if annotation is bool and not isinstance(value, bool):
        return "true or false"
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return f"one of {', '.join(map(str, choices))}" if choices and value not in choices else None


def parsed(kind: type[T], given: Mapping[str, Any], key: str, owner: str) -> T:
    """Return options, a dataclass or a pydantic model, with the given values converted to their types.

    Raises:
        ConfigError: every key that there is not, with near misses, and every value that does not fit, by
            dotted name; `owner` is whose options they are.
    """
    known, adapter = _fields(kind), _adapter(kind)  # type: ignore[arg-type]
    problems = [
        f"{key}.{name}={value}: {owner} has no option {name}{did_you_mean(str(name), known)}"
        for name, value in given.items()
        if name not in known
    ]
    try:
        made: T = adapter.validate_python({name: v for name, v in given.items() if name in known})
    except ValidationError as error:
        problems += _explained(kind, error, given, key, owner)
    if problems:
        raise ConfigError(problems)
    return made


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _fields(kind: Any) -> list[str]:
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    return [*kind.model_fields] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _explained(
    kind: Any, error: ValidationError, given: Mapping[str, Any], key: str, owner: str
) -> list[str]:
    """One sentence for each value that does not fit, whatever number of types it was tried as."""
    told: dict[str, list[str]] = {}
    for each in error.errors():
        said = each["msg"].removeprefix("Value error, ")
        loc = [str(part) for part in each["loc"]]
        if not loc:  # of the options together
            told[f"{key}.{said}"] = []
        elif each["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            inner = kind.model_fields[loc[0]].annotation if issubclass(kind, BaseModel) else None
            near = did_you_mean(loc[-1], _fields(inner)) if len(loc) == 2 else ""
            told[f"{key}.{'.'.join(loc)}={each['input']}: {owner} has no option {loc[-1]}{near}"] = []
        elif each["type"] == "missing":
            told[f"{key}.{'.'.join(loc)} is not set: {owner} needs it"] = []
        else:
            nested = isinstance(given.get(loc[0]), Mapping | list | tuple)
            name = ".".join(loc) if nested and each["input"] != given[loc[0]] else loc[0]
            whys = told.setdefault(f"{key}.{name}={each['input']!r}", [])
            said = "give a list" if each["type"] == "sequence_str" else said
            whys.append(said if said[:2].isupper() else said[0].lower() + said[1:])
    return [f"{head}: {' or '.join(dict.fromkeys(whys))}" if whys else head for head, whys in told.items()]
