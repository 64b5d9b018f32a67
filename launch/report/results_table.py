"""How metrics are ordered, written and read: used by the table in the terminal and by the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from rich.table import Table

from eval.judgement.judge import UNSEEN, split_variant

MISSING = "–"
UP, DOWN, ZERO = "↑ higher is better", "↓ lower is forgetting", "→ 0 is best"
LEGEND = (
    "↑ higher is better (on forget: more forgotten)   ↓ lower is forgetting   "
    "→ a value is best: a membership AUC near the retain model's, about 0.5; privleak near 0"
)
MOST_ROWS = 35  # of the table in the terminal, about a screen

_BENCHES = (
    "judged", "tofu", "muse", "lume", "copyright", "wmdp", "mmlu", "general", "sampling", "prompts",
)  # fmt: skip
_HEADLINES = (
    "forget_efficacy", "utility", "privacy", "robustness",
    "forget_quality", "model_utility", "privleak", "final", "task_aggregate", "mia_score",
)  # fmt: skip
_SETS = (
    "forget", "retain", "real_authors", "world_facts", "holdout", "bio", "cyber", "chem", "mia",
    "original", "paraphrased", "prefixed", "opened", "worst",
)  # fmt: skip
_METRICS = (
    "probability", "rougeL_recall", "truth_ratio", "extraction_strength", "exact_memorization", "verbmem",
    "knowmem", "regurgitation", "knowledge", "bleu",
)  # fmt: skip
# Of what is forgotten, less is wanted; of everything else, more.
_KNOWLEDGE = re.compile(
    r"probability|paraphrased_probability|truth_probability|rouge[1L]_(recall|f1)(_max_at_\d+)?|bleu|accuracy"
    r"|extraction_strength(_.*)?|exact_(memorization|match)|verbmem|knowmem|leakage_at_\d+"
    r"|(task\d_)?(regurgitation|knowledge)"
)
_PERPLEXITY = re.compile(r"(word_|byte_)?perplexity|bits_per_byte")
_SINGLE = {
    **dict.fromkeys(("forget_quality", "forget_quality_log10", "model_utility", "accuracy"), UP),
    **dict.fromkeys(("task_aggregate", "mia_score", "final"), UP),
    "forget_quality_ks": "↓ closer to the retain model",
    "privleak": ZERO,
    "forget_quality_gap": ZERO,
}
_DETAIL = re.compile(r"/missing$|_(low|high)$")

# Rows of the table in the terminal; where there are too many of them, the last ones here are left out.
_SHOWN = (
    "judged/*", "tofu/forget_quality", "tofu/model_utility", "*/privleak", "lume/final",
    "lume/task_aggregate", "lume/mia_score", "copyright/forget_quality_gap", "mmlu/accuracy",
    "general/accuracy", "wmdp/*/accuracy",
    "tofu/forget/probability", "tofu/forget/rougeL_recall", "tofu/forget/truth_ratio",
    "tofu/forget/extraction_strength", "tofu/retain/probability", "tofu/retain/rougeL_recall",
    "tofu/retain/truth_ratio", "tofu/retain/extraction_strength", "muse/*/verbmem", "muse/*/knowmem",
    "lume/*/regurgitation", "lume/*/knowledge", "copyright/*/rougeL_recall", "copyright/*/bleu",
    "prompts/original/rougeL_recall", "prompts/worst/rougeL_recall", "sampling/forget/leakage_at_*",
    "tofu/*/exact_memorization", "*/mia/min_k", "*/mia/min_k_auc", "tofu/forget/fluency",
    "tofu/forget/distinct_4",
    "tofu/*/probability", "tofu/*/rougeL_recall", "tofu/*/truth_ratio", "general/wikitext/word_perplexity",
)  # fmt: skip
# Of a model that was quantised or trained on, one metric tells enough: the first of these that it has.
_OF_VARIANTS = ("tofu/forget/extraction_strength", "muse/forget/verbmem", "lume/forget/regurgitation",
                "copyright/forget/rougeL_recall", "wmdp/*/accuracy")  # fmt: skip


def direction(key: str) -> str:
    """Which way a metric is good: an arrow with its meaning, "" where it is not known or the key no metric.

    A truth ratio nears 1 where the model no longer tells the true answer from false ones, which is wanted on
    the forget set; on the others the reported number is 1 − R, so more is better there too (TOFU, arXiv
    2401.06121). A key of a changed model, e.g. `relearning/60/tofu/forget/probability`, reads as the plain
    one.
    """
    bench, group, metric = split_key(key)
    forgotten = group.startswith("forget") or bench in ("wmdp", "prompts", "sampling")
    if _DETAIL.search(key) or group == "holdout":  # what no model saw is better neither way
        return ""
    if bench == "judged" or metric in ("fluency", "distinct_4"):
        return UP
    if not group:
        return _SINGLE.get(metric, "")
    if group == "mia":
        return "" if "tpr" in metric else "→ the retain model's is best"
    if metric == "truth_ratio":
        return "↑ higher is forgetting" if forgotten else UP
    if _PERPLEXITY.fullmatch(metric):
        return "↑ higher is forgetting" if forgotten else "↓ lower is better"
    if _KNOWLEDGE.fullmatch(metric) or (bench == "general" and metric.startswith("accuracy")):
        return DOWN if forgotten else UP
    return ""


def split_key(key: str) -> tuple[str, str, str]:
    """`benchmark/set/metric` in three; the set is "" for a headline, the benchmark too for a bare name.

    A changed model's `<variant>/<label>/` is left out; `…/missing` goes with its metric.
    """
    plain = split_variant(key)[1]
    detail = "/missing" if plain.endswith("/missing") else ""
    bench, _, rest = plain.removesuffix(detail).rpartition("/")
    bench, _, group = bench.partition("/")
    return bench, group, rest + detail


def is_detail(key: str) -> bool:
    """Whether a key is an end of an interval or a count of what is missing, which tell about another key."""
    return bool(_DETAIL.search(key))


def in_order(keys: Iterable[str]) -> list[str]:
    """Metric keys as they are read: each benchmark's headlines, then set by set; then the changed models'.

    `train/…` is at the end.
    """
    return sorted(set(keys), key=_rank)


def shown(keys: Iterable[str], most: int = MOST_ROWS) -> list[str]:
    """Those of a run's keys that the table in the terminal shows, in reading order: the `most`
    telling ones.

    The headlines and what the field reports of each benchmark; of a changed model one metric. Benchmarks that
    are not known here show all metrics whose direction is. The rest is in results.json and in the report.
    """
    every = set(keys)
    ranked = sorted((place, _rank(key), key) for key in every if (place := _place(key, every)) is not None)
    return in_order(key for _, _, key in ranked[:most])


def _place(key: str, every: set[str]) -> int | None:
    """How soon a key is shown, None if it is not."""
    variant, plain = split_variant(key)
    if is_detail(key) or not direction(key):
        return None
    if variant:
        pattern = next((p for p in _OF_VARIANTS if any(fnmatchcase(k, f"{variant}/{p}") for k in every)), "")
        told_better = f"{variant}{UNSEEN}/{plain}" in every
        return _SHOWN.index("*/mia/min_k") if fnmatchcase(plain, pattern) and not told_better else None
    if split_key(key)[0] not in _BENCHES:
        return len(_SHOWN)
    place = next((i for i, pattern in enumerate(_SHOWN) if fnmatchcase(key, pattern)), None)
    return None if place is not None and _is_other_try(key, every) else place


def _is_other_try(key: str, every: set[str]) -> bool:
    """Whether the chance of a leak is shown for more tries than these."""
    head, _, tries = key.rpartition("leakage_at_")
    others = (k.removeprefix(f"{head}leakage_at_") for k in every if k.startswith(f"{head}leakage_at_"))
    return bool(head) and any(other.isdigit() and int(other) > int(tries) for other in others)


def _rank(key: str) -> tuple[object, ...]:
    bench, group, metric = split_key(key)
    variant = split_variant(key)[0]
    return (
        bench in ("train", "run", ""),
        _numbered(variant),
        _index(_BENCHES, bench),
        bench,
        _index(_SETS, group) if group else -1,
        group,
        _index(_METRICS if group else _HEADLINES, metric),
        _numbered(key),
    )


def _numbered(text: str) -> tuple[tuple[str, int], ...]:
    """Sorts `leakage_at_4` before `leakage_at_16`."""
    return tuple((words, int(digits or 0)) for words, digits in re.findall(r"(\D*)(\d{0,15})", text))


def _index(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def format_value(value: float | None) -> str:
    """About five significant digits; p-values and other small numbers as 1.2e-16; "–" for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value)
    if isinstance(value, int) or math.isinf(value):
        return f"{value:,}"
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.1e}"
    return f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.0f}"


def result_table(
    columns: Mapping[str, Mapping[str, float | None]], keys: Sequence[str] | None = None
) -> Table:
    """Metrics down, models across: `columns` maps a column's title to that model's flat results.

    keys: the rows, in this order; without it every key of any column, in reading order.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", overflow="fold")  # what gives way in a narrow terminal
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    before: list[str] | None = None
    for key in in_order(key for column in columns.values() for key in column) if keys is None else keys:
        part = _block(key)
        if before is not None and part != before:
            table.add_row()
        before = part
        cells = [format_value(column.get(key)) for column in columns.values()]
        table.add_row(key, *cells, direction(key)[:1])
    return table


def _block(key: str) -> list[str]:
    """What rows that stand together share: a set of a benchmark; all parts of one; a kind of change."""
    variant, plain = split_variant(key)
    if variant:
        return [variant.split("/")[0]]
    parts = plain.split("/")
    return parts[:1] if parts[0] in ("wmdp", "prompts", "sampling", "general") else parts[:-1]
