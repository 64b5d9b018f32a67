"""The contract of a benchmark, a module `eval/benchmarks/<name>.py` or of your own.

A benchmark that asks a model through requests has `Options`, `SETS`, `METRICS`, `requests` and `score`, and
may have `read_baseline` (`Benchmark`, `BaselineBenchmark`). A benchmark whose questions a library has defines
`check`, `identity` and `measure` in place of `requests` and `score`; `measure` gets the live model
(`LiveBenchmark`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import numpy as np
from typing_extensions import TypeIs

from eval.collection.records import LikelihoodRecords, Records
from eval.collection.requests import Request
from eval.judgement.aspects import AspectName, Attack, Rule
from eval.metrics.words import Words
from unlearn import plugins
from unlearn.config import Section
from unlearn.data.example import Example
from unlearn.errors import ConfigError, UserError, listed

if TYPE_CHECKING:
    from eval.collection.live_model import Live

_SHOWN = 3  # examples that a problem names

Sets: TypeAlias = Mapping[str, Sequence[Example]]
Role = Literal["forget", "retain", "utility", "holdout"]
"""What a set measures: whether its examples were forgotten, whether similar ones were kept (`retain`), or all
else (`utility`). No model has seen the `holdout` set."""
Baseline: TypeAlias = Any
"""What a benchmark's `read_baseline` returned; only that benchmark looks into it."""


class Better(Enum):
    """The direction of a metric, as tables and pages show it."""

    HIGHER = "↑ higher is better"
    LOWER = "↓ lower is better"
    FORGOTTEN_IF_HIGHER = "↑ higher is forgetting"
    FORGOTTEN_IF_LOWER = "↓ lower is forgetting"
    ZERO = "→ 0 is best"
    LIKE_RETAIN = "→ the retain model's is best"
    CLOSER_TO_RETAIN = "↓ closer to the retain model"
    NEITHER = ""


View = Literal["utility", "forgetting", "card", "changed", "sweep", "default"]
"""Where a metric is shown besides tables: an axis of the trade-off chart (`utility` is x, `forgetting` is y),
a card at the top of a report, the one row of a changed model, a column of a sweep's table, the `default` view
of a W&B project without runs."""


@dataclass(frozen=True)
class Metric:
    """What a benchmark declares of one of its metrics.

    - `text` explains it in one line.
    - `level`: its rank for the table in the terminal (1 is shown first); None shows it in the report only.
    - `judged`: the aspect of the judgement it counts in, and how.
    - `attack`: finds, among keys of this declaration, what is compared under attack.
    - `optional`: the judgement does without it where it is absent.
    - `weak`: counts only where no other benchmark measures the aspect.
    - `replaced_by`: a key of the same benchmark, without its name, that counts instead where both are there.
    - `of_answers`: it needs the log-probabilities of the examples' own answers and nothing else; where it
      alone is wanted, the model is asked for nothing else.
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
    of_answers: bool = False
    views: tuple[View, ...] = ()


class BenchmarkError(UserError):
    """A set that a benchmark does not score, or examples that it cannot score."""


@dataclass(frozen=True)
class Result:
    """What a benchmark measured.

    - `metrics` by their keys of results.json.
    - `examples`: one row for each example, with at least `set` and `id`; NaN where a value is missing.
    - `problems`: what could not be measured and why, each a sentence that names the example or the set.
    - `words`: by set, the tokenizer of the metrics that compare words.
    """

    metrics: dict[str, float]
    examples: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)


class Benchmark(Protocol):
    """A benchmark that asks a model through requests.

    `Options` is a `Section` with the benchmark's defaults. `SETS` are the sets of a dataset that it can
    score, with their roles; it gets those that the dataset has, without a final `_eval` in their names.
    `METRICS` declares its keys of results.json in reading order; a `*` stands for anything within a part of a
    key.

    It may have `left_out(options)`, which returns the keys of `METRICS` that options leave unmeasured, so
    that nothing is made to depend on them. It may have `READS`, sets that its questions are made of and that
    it does not score: it gets those too. It may have `identity(options)` as a `LiveBenchmark` has.
    """

    Options: type[Section]
    SETS: Mapping[str, Role]
    METRICS: Mapping[str, Metric]

    def requests(self, sets: Sets, options: Any) -> list[Request]:
        """Return what to ask of a model."""

    def score(self, read: Records, retain: Records | Baseline | None, sets: Sets, options: Any) -> Result:
        """Return the metrics from the records of the requests and, if there is one, of the retain model.

        retain: the retain model's records, or the baseline of a `BaselineBenchmark`.
        """


class BaselineBenchmark(Benchmark, Protocol):
    """A benchmark that also compares with an evaluation of a retain model that another project published."""

    def read_baseline(self, path: Path) -> Baseline:
        """Return the content of the published log; called before any model is loaded, to check it.

        Raises:
            UserError: it is no log of this benchmark; the message names the file and what was expected.
        """


class LiveBenchmark(Protocol):
    """A benchmark that calls the model itself.

    It may have `check_tokenizer(options, tokenizer)`, which returns problems of its options with the model's
    tokenizer; and `READS` as a `Benchmark` has, sets that it gets with the prefix `READ`.
    """

    Options: type[Section]
    SETS: Mapping[str, Role]
    METRICS: Mapping[str, Metric]

    def check(self, options: Any) -> list[str]:
        """Return what is wrong with the options, before any model is loaded."""

    def identity(self, options: Any) -> Any:
        """Return what else determines the questions, as JSON: the content of files that options name."""

    def measure(self, live: Live, sets: Sets, options: Any) -> Result:
        """Return the metrics of the live model."""


_PARTS = (
    "Options", "SETS", "METRICS", "requests|measure", "score|measure", "requests|check", "requests|identity",
)  # fmt: skip
BENCHMARKS = plugins.Kind("eval.benchmarks", "benchmark", parts=_PARTS)


def find(name: str) -> Benchmark | LiveBenchmark:
    """Return the benchmark with this name or dotted path.

    Raises:
        ConfigError: there is no such benchmark.
    """
    return cast("Benchmark | LiveBenchmark", BENCHMARKS.find(name, f"eval.benchmarks.{name}"))


def is_live(benchmark: Benchmark | LiveBenchmark) -> TypeIs[LiveBenchmark]:
    """Return whether a benchmark calls the model itself."""
    return hasattr(benchmark, "measure")


def reads_baseline(benchmark: Benchmark | LiveBenchmark) -> TypeIs[BaselineBenchmark]:
    """Return whether a benchmark can use a published log (`model.retain_log`)."""
    return hasattr(benchmark, "read_baseline")


def options_of(benchmark: Benchmark | LiveBenchmark, given: Mapping[str, Any], name: str) -> Any:
    """Return the benchmark's options with the given values, converted to their types.

    Raises:
        ConfigError: what is wrong with them, by dotted name.
    """
    place = f"eval.benchmarks.{name}"
    options = plugins.parsed(benchmark.Options, given, place, f"benchmark {name}")
    problems = []
    for key, value in options:
        least = 0 if key == "seed" else 1 if key.endswith("tokens") else None
        if least is not None and value is not None and value < least:
            problems.append(f"{place}.{key}={value}: give at least {least}")
    if problems:
        raise ConfigError(problems)
    return options


def scored(benchmark: Benchmark | LiveBenchmark, sets: Sets, roles: Sequence[Role] | None = None) -> Sets:
    """Return those of a dataset's sets that the benchmark scores (with one of these roles), by its names."""
    return {
        name.removesuffix("_eval"): sets[name]
        for name, role in benchmark.SETS.items()
        if name in sets and (roles is None or role in roles)
    }


WHOLE = "whole/"
"""Prefix of a set as it was before `eval.limit` and `eval.select`."""
READ = "read/"
"""Prefix of a set that a live benchmark reads and does not score."""


def read_along(benchmark: Benchmark | LiveBenchmark, sets: Sets) -> Sets:
    """Return those of a dataset's sets that the benchmark reads and does not score, by its names.

    Where another benchmark scores a part of one, the `WHOLE` of it is read.
    """
    whole = {name: sets.get(f"{WHOLE}{name}", sets.get(name)) for name in reads(benchmark)}
    return {name.removesuffix("_eval"): rows for name, rows in whole.items() if rows is not None}


def reads(benchmark: Benchmark | LiveBenchmark) -> Sequence[str]:
    """Return the sets that the benchmark reads and does not score, by the dataset's names."""
    return getattr(benchmark, "READS", ())


def question_of(example: Example, benchmark: str) -> str:
    """Return the question of an example, for a benchmark of questions and answers.

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
    """Return a sentence that names the examples whose true answer has no word to compare."""
    pairs = zip(examples, answers, strict=True)
    bare = [e.id for e, answer in pairs if answer and not words.tokenize(answer)]
    if not bare:
        return []
    return [
        f"{where}, {few(bare)}: the true answer has no word (words={words.name}), so ROUGE is not measured"
    ]


def example_problems(read: Records, name: str) -> list[str]:
    """Describe the problems of single examples of a request, one sentence for each kind of problem."""
    records = read.any(name)
    by_problem: dict[str, list[str]] = {}
    for example, problem in zip(records.example, records.problem, strict=True):
        if problem is not None:
            by_problem.setdefault(problem, []).append(example)
    if isinstance(records, LikelihoodRecords):
        for example, logp in zip(records.example, records.logp, strict=True):
            if np.isnan(logp).any():
                by_problem.setdefault("the model gives NaN for it", []).append(example)
    return [f"{name}, {few(examples)}: {problem}" for problem, examples in by_problem.items()]


def few(examples: Sequence[str]) -> str:
    """Return the names of the first distinct examples and the number of further ones, for a message."""
    distinct = dict.fromkeys(examples)
    return f"{'example' if len(distinct) == 1 else 'examples'} {listed(distinct, _SHOWN)}"
