"""Look up metrics by key, in the `METRICS` of the benchmark that declares them.

A key is `<benchmark>/<set>/<metric>` or `<benchmark>/<metric>`; for a variant of the model it begins with
what the variant's `KEYS` matches (`relearning/10/`, `calibrated/`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from eval import benchmark
from eval.benchmark import BENCHMARKS, Benchmark, LiveBenchmark, Metric, Role, View
from eval.judgement import aspects
from eval.judgement.metrics import METRICS as JUDGED
from unlearn.errors import ConfigError
from unlearn.plugins import cached

if TYPE_CHECKING:
    from eval.variants import Variant

MAX_ROWS = 35
"""Rows of the table in the terminal, about a screen."""

_NO_BENCHMARKS = ("", "train", "run", "select")
_LAST_LEVEL = 9  # of metrics without a declaration
_DETAIL = re.compile(r"/missing$|_(low|high)$")


@dataclass(frozen=True)
class MetricInfo:
    """The parts of a key, and what its benchmark declares.

    `variant` is the variant of the model (`relearning/60/unseen`), "" for the model itself; `plain` is the
    key without it. `group` is the set, "" for a headline. `declared` is None for a metric that no benchmark
    declares.
    """

    key: str
    variant: str
    plain: str
    benchmark: str
    group: str
    metric: str
    declared: Metric | None

    @property
    def is_detail(self) -> bool:
        """Whether the key is an end of an interval or a count of missing values of another key."""
        return bool(_DETAIL.search(self.key))

    @property
    def is_metric(self) -> bool:
        """Whether a benchmark computes it; not a loss, a duration or a variant's own number."""
        known = self.benchmark not in _NO_BENCHMARKS and self.benchmark not in _variants()
        return known or self.declared is not None

    @property
    def direction(self) -> str:
        """The arrow with its meaning; "" where no direction is declared."""
        return "" if self.declared is None or self.is_detail else self.declared.better.value


@cached
def info(key: str) -> MetricInfo:
    """Parse a key and look up its declaration."""
    variant, plain = split_variant(key)
    bench, group, metric = _split(plain)
    return MetricInfo(key, variant, plain, bench, group, metric, _declaration(plain))


def split_variant(key: str) -> tuple[str, str]:
    """Return the variant of the model and the key without it; ("", key) for the unchanged model.

    `relearning/60/unseen/tofu/forget/probability` → `relearning/60/unseen` and the rest.
    """
    name = key.partition("/")[0]
    if name not in _variants():
        return "", key
    match = re.fullmatch(rf"({_variants()[name].KEYS})/(.+/.+)", key)
    return (match[1], match[2]) if match else ("", key)


def is_attack(variant: str) -> bool:
    """Return whether a variant of the model measures how robust the forgetting is."""
    return _variants()[variant.partition("/")[0]].ATTACK


def in_order(keys: Iterable[str]) -> list[str]:
    """Sort keys in reading order: each benchmark's headlines, then its sets; then variants; then the rest.

    Sets and metrics are in the order in which the benchmark declares them.
    """
    return sorted(set(keys), key=_rank)


def shown(keys: Iterable[str], limit: int = MAX_ROWS) -> list[str]:
    """Return the `limit` important keys, in reading order, for the table in the terminal.

    The benchmark declares a metric's level; metrics without a declaration come last. A variant of the model
    has one metric, which the benchmark declares for that.
    """
    every = set(keys)
    ranked = sorted((level, _rank(key), key) for key in every if (level := _level(key, every)) is not None)
    return in_order(key for _, _, key in ranked[:limit])


def with_view(keys: Iterable[str], view: View) -> list[str]:
    """Return those of the keys whose declaration names the view, in reading order."""
    return [key for key in in_order(keys) if (one := info(key).declared) is not None and view in one.views]


def declared_keys(view: View) -> list[str]:
    """Return the exact keys that declare a view, of all benchmarks, in reading order."""
    return [
        key for key in with_view((key for keys in declarations() for key in keys), view) if "*" not in key
    ]


def trade_off_pairs(measured: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs (utility, forgetting) of the same benchmark among these keys, in reading order."""
    known = [key for key in measured if not info(key).variant]
    across, up = with_view(known, "utility"), with_view(known, "forgetting")
    pairs = [(x, y) for x in across for y in up if _owner(x) is _owner(y)]
    return sorted(pairs, key=lambda pair: _owner(pair[0]) is JUDGED)  # measured metrics come first


def metrics_of(name: str, has: Collection[str], options: Mapping[str, Any] | None = None) -> list[str]:
    """Return keys and patterns of the metrics that a benchmark has on a dataset with these sets.

    `options`: the benchmark's; those that it refuses leave nothing out.

    Raises:
        ConfigError: there is no such benchmark.
    """
    module = benchmark.find(name)
    lacking = {each.removesuffix("_eval") for each in module.SETS if each not in has}
    without: Collection[str] = ()
    if options is not None and hasattr(module, "left_out"):
        with suppress(ConfigError):
            without = module.left_out(benchmark.options_of(module, options, name))
    return [key for key in module.METRICS if _split(key)[1] not in lacking and key not in without]


def can_be(key: str, patterns: Iterable[str]) -> bool:
    """Return whether a key matches a pattern, or is a detail of such a key (`/missing`, `_low`, `_high`)."""
    plain = _DETAIL.sub("", key)
    return any(_is(each, pattern) for pattern in patterns for each in (key, plain))


def is_benchmark(name: str) -> bool:
    """Return whether a benchmark declares keys that begin with this name."""
    return bool(_metrics_of(name))


def has_retain_set(bench: str) -> bool:
    """Return whether a benchmark also scores a retain set, so that its metrics are shown set by set.

    True for a benchmark that is not known here.
    """
    return "retain" in _roles(bench).values() or not _metrics_of(bench)


def set_order(bench: str, group: str) -> tuple[object, ...]:
    """Return a sort key of sets: benchmarks that score a retain set first, of each the sets to forget first,
    then those to retain.
    """
    role = _roles(bench).get(group)
    return not has_retain_set(bench), bench, role != "forget", role != "retain", group


def declarations() -> list[Mapping[str, Metric]]:
    """Return the `METRICS` of the judgement, of each benchmark, and of variants, in reading order."""
    own = (_metrics_of(name) for name in _variants())
    return [JUDGED, *(module.METRICS for module in _modules()), *(metrics for metrics in own if metrics)]


# -- declarations ----------------------------------------------------------------------------------------


def _declaration(plain: str) -> Metric | None:
    if "/" not in plain:  # other programs write headlines without their benchmark
        headlines = ((key, one) for metrics in declarations() for key, one in metrics.items())
        return next((one for key, one in headlines if _split(key)[1:] == ("", plain)), None)
    metrics = _metrics_of(plain.partition("/")[0])
    if plain in metrics:
        return metrics[plain]
    return next((one for pattern, one in metrics.items() if _is(plain, pattern)), None)


def _is(key: str, pattern: str) -> bool:
    return key == pattern or (key.count("/") == pattern.count("/") and fnmatchcase(key, pattern))


def _metrics_of(bench: str) -> Mapping[str, Metric]:
    if bench == aspects.PREFIX:
        return JUDGED
    if bench in _variants():
        return getattr(_variants()[bench], "METRICS", {})
    module = _module_of(bench)
    return {} if module is None else module.METRICS


def _roles(bench: str) -> Mapping[str, Role]:
    """Return the roles of a benchmark's sets by the names that its keys and examples have."""
    module = _module_of(bench)
    return {} if module is None else {n.removesuffix("_eval"): role for n, role in module.SETS.items()}


@cached
def _module_of(bench: str) -> Benchmark | LiveBenchmark | None:
    """Return the benchmark whose keys begin with this name, usually its module's; None for other keys."""
    if bench in (*_NO_BENCHMARKS, aspects.PREFIX) or bench in _variants():
        return None
    if bench in BENCHMARKS.known():
        return benchmark.find(bench)
    return next((m for m in _modules() if any(key.startswith(f"{bench}/") for key in m.METRICS)), None)


@cached
def _modules() -> tuple[Benchmark | LiveBenchmark, ...]:
    """Return the benchmarks in reading order: those that also score a retain set, those without sets, and
    attacks; within each kind by number of metrics, largest first.
    """

    def place(name: str) -> tuple[int, int, str]:
        module = benchmark.find(name)
        roles = set(module.SETS.values())
        return 0 if "retain" in roles else 1 if not roles else 2, -len(module.METRICS), name

    return tuple(benchmark.find(name) for name in sorted(BENCHMARKS.known(), key=place))


def _owner(key: str) -> Mapping[str, Metric]:
    return _metrics_of(info(key).benchmark)


@cached
def _variants() -> Mapping[str, Variant]:
    """Return the variants by what their keys begin with, the last part of their names."""
    from eval import variants  # needs this module

    return {name.rpartition(".")[2]: variants.find(name) for name in variants.VARIANTS.known()}


# -- order -----------------------------------------------------------------------------------------------


def _split(plain: str) -> tuple[str, str, str]:
    detail = "/missing" if plain.endswith("/missing") else ""
    head, _, metric = plain.removesuffix(detail).rpartition("/")
    bench, _, group = head.partition("/")
    return bench, group, metric + detail


def _level(key: str, every: set[str]) -> int | None:
    """Return the level at which a key is shown, None if it is not shown."""
    one = info(key)
    if one.is_detail or not one.is_metric:
        return None
    if one.variant:
        return _level_of_changed(one, every)
    if one.declared is None:
        return _LAST_LEVEL
    return None if one.declared.level is not None and _more_tries(key, every) else one.declared.level


def _level_of_changed(one: MetricInfo, every: set[str]) -> int | None:
    """Return the level of a variant's one metric; examples that it was not trained on take precedence."""
    unseen = f"{one.variant}{aspects.UNSEEN}/{one.plain}" in every
    chosen = one.declared is not None and "changed" in one.declared.views
    return 3 if chosen and not unseen else None


def _more_tries(key: str, every: set[str]) -> bool:
    """Return whether the same metric exists for more tries."""
    head, _, tries = key.rpartition("_at_")
    others = [k.removeprefix(f"{head}_at_") for k in every if k.startswith(f"{head}_at_")] if head else []
    return tries.isdigit() and any(other.isdigit() and int(other) > int(tries) for other in others)


@cached
def _rank(key: str) -> tuple[object, ...]:
    one = info(key)
    bench, group = _place(one.benchmark), _group_place(one)
    patterns = list(_owner(key))
    metric = next((place for place, p in enumerate(patterns) if _is(one.plain, p)), len(patterns))
    detail = numbered(one.key)
    return (not one.is_metric, numbered(one.variant), *bench, *group, metric, detail)


@cached
def _place(bench: str) -> tuple[int, str]:
    """Return a benchmark's position among the others; those without declarations are last."""
    if bench == aspects.PREFIX or bench in _NO_BENCHMARKS:
        return 0, ""
    for place, metrics in enumerate(declarations()):
        benches = list(dict.fromkeys(key.partition("/")[0] for key in metrics))
        if bench in benches:
            return place, f"{benches.index(bench)}"
    return len(declarations()), bench


def _group_place(one: MetricInfo) -> tuple[int, str]:
    groups = list(dict.fromkeys(_split(key)[1] for key in _owner(one.key)))
    if not one.group:
        return -1, ""
    return (groups.index(one.group) if one.group in groups else len(groups)), one.group


def numbered(text: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key that puts `leakage_at_4` before `leakage_at_16`."""
    return tuple((words, int(digits or 0)) for words, digits in re.findall(r"(\D*)(\d{0,15})", text))
