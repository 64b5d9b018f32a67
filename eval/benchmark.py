"""What a benchmark module, `eval/benchmarks/<name>.py`, gives.

One that asks a model through requests has `Options`, `SETS`, `requests` and `score`. One whose questions
only its own library knows has `Options`, `SETS` and `measure`, which gets the live model.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeIs

from eval import benchmarks
from eval.records import Records
from eval.requests import Request
from unlearn.data.example import Example
from unlearn.errors import UserError

if TYPE_CHECKING:
    from eval.live import Live
    from eval.published import PublishedLog

Sets: TypeAlias = Mapping[str, Sequence[Example]]
Role = Literal["forget", "retain", "utility", "holdout"]
"""What a set tells: whether something was forgotten, whether the like of it was kept, whether all else was;
`holdout` was never seen by any model."""


class BenchmarkError(UserError):
    """A benchmark, an option or a set that does not exist; the message lists those that do."""


@dataclass(frozen=True)
class Result:
    """`metrics` by their keys of results.json; `examples`: one row per example, NaN where unmeasured.

    A row has at least `set` and `id`. `problems`: what could not be measured and why, a sentence each that
    names the example or the set.
    """

    metrics: dict[str, float]
    examples: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)


class Benchmark(Protocol):
    """A benchmark by requests. `Options` is a frozen dataclass whose defaults are the benchmark's own.

    `SETS` are the sets of the dataset that it can score, with their roles. It gets those that there are,
    without a final `_eval` in their names.
    """

    Options: Any
    SETS: Mapping[str, Role]

    def requests(self, sets: Sets, options: Any) -> list[Request]: ...

    def score(
        self, read: Records, retain: Records | PublishedLog | None, sets: Sets, options: Any
    ) -> Result: ...


class LiveBenchmark(Protocol):
    """A benchmark that calls the model itself.

    `check` lists what is wrong with options, before any model; `identity` is what determines the questions
    beside them, JSON: the content of files that they name.
    """

    Options: Any
    SETS: Mapping[str, Role]

    def check(self, options: Any) -> list[str]: ...

    def identity(self, options: Any) -> Any: ...

    def measure(self, live: Live, sets: Sets, options: Any) -> Result: ...


def find(name: str) -> Benchmark | LiveBenchmark:
    """The module `eval.benchmarks.<name>`.

    Raises:
        BenchmarkError: there is no such benchmark.
    """
    if name in _modules():
        module = importlib.import_module(f"eval.benchmarks.{name}")
        if _is_benchmark(module):
            return cast("Benchmark | LiveBenchmark", module)
    raise BenchmarkError(f"there is no benchmark {name!r}; there are: {', '.join(names())}")


def is_live(benchmark: Benchmark | LiveBenchmark) -> TypeIs[LiveBenchmark]:
    return hasattr(benchmark, "measure")


def names() -> list[str]:
    return [n for n in _modules() if _is_benchmark(importlib.import_module(f"eval.benchmarks.{n}"))]


def options_of(benchmark: Benchmark | LiveBenchmark, given: Mapping[str, Any], name: str) -> Any:
    """The benchmark's options with the given ones in place.

    Raises:
        BenchmarkError: an option it does not have, or a value that an option cannot have.
    """
    known = [field.name for field in fields(benchmark.Options)]
    for key in given:
        if key not in known:
            raise BenchmarkError(f"benchmark {name} has no option {key!r}; it has: {', '.join(known)}")
    try:
        options = TypeAdapter(benchmark.Options).validate_python(dict(given))
    except ValidationError as error:
        told = dict.fromkeys(map(_told, error.errors()))
        raise BenchmarkError(f"benchmark {name}: {'; '.join(told)}") from error
    for key, value in vars(options).items():
        least = 0 if key == "seed" else 1 if key.endswith("tokens") else None
        if least is not None and value is not None and value < least:
            raise BenchmarkError(f"benchmark {name}: {key}={value}: give at least {least}")
    return options


def _told(error: Any) -> str:
    """What pydantic, or an option's own check, finds wrong."""
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{error['loc'][0]}={error['input']}: {message[0].lower()}{message[1:]}" if error["loc"] else message
    )


def scored(benchmark: Benchmark | LiveBenchmark, sets: Sets, roles: Sequence[Role] | None = None) -> Sets:
    """Of a dataset's sets those that the benchmark scores (with one of these roles), as it names them."""
    wanted = benchmark.SETS
    return {
        name.removesuffix("_eval"): sets[name]
        for name, role in wanted.items()
        if name in sets and (roles is None or role in roles)
    }


def question_of(example: Example, benchmark: str) -> str:
    """What a benchmark of questions and answers asks.

    Raises:
        BenchmarkError: the example is a plain text.
    """
    if example.question is None:
        raise BenchmarkError(
            f"{benchmark}: example {example.id} has no question, only a text: choose another benchmark, or "
            "eval=none"
        )
    return example.question


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))


def _is_benchmark(module: Any) -> bool:
    by_requests = all(hasattr(module, part) for part in ("requests", "score"))
    return (
        hasattr(module, "SETS") and hasattr(module, "Options") and (by_requests or hasattr(module, "measure"))
    )
