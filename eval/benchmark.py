"""What a benchmark module, `eval/benchmarks/<name>.py`, gives.

One that asks a model through requests has `Options`, `SETS`, `requests` and `score`. One whose questions
only its own library knows has `Options`, `SETS` and `measure`, which gets the live model.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from typing_extensions import TypeIs

from eval import benchmarks
from eval.collection.records import Records
from eval.collection.requests import Request
from eval.metrics.words import Words
from unlearn import plugins as signatures
from unlearn.data.example import Example
from unlearn.errors import ConfigError, UserError

if TYPE_CHECKING:
    from eval.benchmarks.tofu.published_logs import PublishedLog
    from eval.collection.live_model import Live

_SHOWN = 3  # examples of a problem that are named

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
    names the example or the set. `words`: by set, the tokenizer of the metrics that compare words.
    """

    metrics: dict[str, float]
    examples: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)


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
    """The benchmark's options with the given ones in place, converted to their types.

    Raises:
        ConfigError: what is wrong with them, by dotted name.
    """
    place = f"eval.benchmarks.{name}"
    options = signatures.parsed(benchmark.Options, given, place, f"benchmark {name}")
    problems = []
    for key, value in vars(options).items():
        least = 0 if key == "seed" else 1 if key.endswith("tokens") else None
        if least is not None and value is not None and value < least:
            problems.append(f"{place}.{key}={value}: give at least {least}")
    if problems:
        raise ConfigError(problems)
    return options


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


def without_words(
    where: str, examples: Sequence[Example], answers: Sequence[str | None], words: Words
) -> list[str]:
    """Name the examples whose true answer is there but has no word to compare."""
    pairs = zip(examples, answers, strict=True)
    bare = [e.id for e, answer in pairs if answer and not words.tokenize(answer)]
    if not bare:
        return []
    return [
        f"{where}, {few(bare)}: the true answer has no word (words={words.name}), so ROUGE is not measured"
    ]


def few(examples: Sequence[str]) -> str:
    """Name the first of some examples, each once, and say how many more there are."""
    distinct = list(dict.fromkeys(examples))
    more = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return f"{'example' if len(distinct) == 1 else 'examples'} {', '.join(distinct[:_SHOWN])}{more}"


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))


def _is_benchmark(module: Any) -> bool:
    by_requests = all(hasattr(module, part) for part in ("requests", "score"))
    return (
        hasattr(module, "SETS") and hasattr(module, "Options") and (by_requests or hasattr(module, "measure"))
    )
