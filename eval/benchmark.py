"""What a benchmark module, `eval/benchmarks/<name>.py`, gives.

One that asks a model through requests has `Options`, `SETS`, `METRICS`, `requests` and `score`. One whose
questions only its own library knows has `measure`, which gets the live model, in place of the last two.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from typing_extensions import TypeIs

from eval import benchmarks
from eval.collection.records import Records
from eval.collection.requests import Request
from eval.judgement.aspects import AspectName, Attack, Rule
from eval.metrics.words import Words
from unlearn import plugins
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


class Better(Enum):
    """Which way a metric is good, as tables and pages write it."""

    HIGHER = "↑ higher is better"
    LOWER = "↓ lower is better"
    FORGOTTEN_IF_HIGHER = "↑ higher is forgetting"
    FORGOTTEN_IF_LOWER = "↓ lower is forgetting"
    ZERO = "→ 0 is best"
    LIKE_RETAIN = "→ the retain model's is best"
    CLOSER_TO_RETAIN = "↓ closer to the retain model"
    NEITHER = ""


View = Literal["utility", "forgetting", "card", "changed", "sweep", "default"]
"""Where a metric is shown besides tables: an axis of the trade-off (`utility` across, `forgetting` up), a
card at the head of a report, the one row of a changed model, a column of a sweep's table, the `default` view
of a W&B project without runs."""


@dataclass(frozen=True)
class Metric:
    """What a benchmark declares of one of its metrics.

    `text` explains it in one line. `level` says how soon the table in the terminal shows it (1 first), None
    leaves it to the report. `judged` is the aspect that it counts in and how; `attack` finds, among keys of
    this declaration, what is compared under attack. `optional` metrics are not missed where they are absent;
    `weak` ones count only where no other benchmark tells of the aspect. Where both of two metrics that say
    the same were measured, `replaced_by` (a key of the same benchmark, without its name) counts instead.
    """

    text: str
    better: Better = Better.NEITHER
    unit: str = "0 to 1"
    level: int | None = None
    judged: tuple[AspectName, Rule] | None = None
    attack: Attack | None = None
    optional: bool = False
    weak: bool = False
    replaced_by: str = ""
    views: tuple[View, ...] = ()


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
    without a final `_eval` in their names. `METRICS` declares its keys of results.json, in reading order; a
    `*` stands for anything within a part of a key.
    """

    Options: Any
    SETS: Mapping[str, Role]
    METRICS: Mapping[str, Metric]

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
    METRICS: Mapping[str, Metric]

    def check(self, options: Any) -> list[str]: ...

    def identity(self, options: Any) -> Any: ...

    def measure(self, live: Live, sets: Sets, options: Any) -> Result: ...


def find(name: str) -> Benchmark | LiveBenchmark:
    """The module `eval.benchmarks.<name>`.

    Raises:
        BenchmarkError: there is no such benchmark.
    """
    if name in candidates():
        module = importlib.import_module(f"eval.benchmarks.{name}")
        if _is_benchmark(module):
            return cast("Benchmark | LiveBenchmark", module)
    raise BenchmarkError(f"there is no benchmark {name!r}; there are: {', '.join(names())}")


def is_live(benchmark: Benchmark | LiveBenchmark) -> TypeIs[LiveBenchmark]:
    return hasattr(benchmark, "measure")


def names() -> list[str]:
    return [n for n in candidates() if _is_benchmark(importlib.import_module(f"eval.benchmarks.{n}"))]


def options_of(benchmark: Benchmark | LiveBenchmark, given: Mapping[str, Any], name: str) -> Any:
    """The benchmark's options with the given ones in place, converted to their types.

    Raises:
        ConfigError: what is wrong with them, by dotted name.
    """
    place = f"eval.benchmarks.{name}"
    options = plugins.parsed(benchmark.Options, given, place, f"benchmark {name}")
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


def candidates() -> list[str]:
    """Names of the modules that may be benchmarks; nothing is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))


def _is_benchmark(module: Any) -> bool:
    by_requests = all(hasattr(module, part) for part in ("requests", "score"))
    return all(hasattr(module, part) for part in ("SETS", "Options", "METRICS")) and (
        by_requests or hasattr(module, "measure")
    )
