"""What a sweep made, in one table: in the terminal, and as Markdown beside its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from eval.judged import split_variant
from launch.table import direction, format_value, in_order, shown
from unlearn.files import read_json, replacing

_OF_TOFU = tuple(f"tofu/{metric}" for metric in (
    "forget_quality", "model_utility", "forget/probability", "forget/rougeL_recall", "forget/truth_ratio",
    "forget/extraction_strength", "retain/probability", "retain/extraction_strength",
))  # fmt: skip
_MOST_COLUMNS = 9


@dataclass(frozen=True)
class Made:
    """One run of a sweep: its overrides, and its folder or why there is none.

    `beside` are runs it is compared with, by what they are called: the target and the retain model.
    """

    overrides: tuple[str, ...]
    directory: Path | None
    reason: str = ""
    beside: tuple[tuple[str, Path], ...] = ()


def labels(runs: Sequence[Made]) -> list[str]:
    """What tells the runs of a sweep apart: the overrides that not all of them share, without their paths."""
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    return [" ".join(_brief(o) for o in run.overrides if o not in shared) or "run" for run in runs]


def _brief(override: str) -> str:
    """`method=npo` as `npo`, `method.forget.beta=0.1` as `beta=0.1`."""
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}" if "." in key else value


@dataclass(frozen=True)
class Summary:
    """Column heads, a row for each run (first those they are compared with), and what failed and why."""

    heads: list[str]
    rows: list[list[str]]
    failed: list[tuple[str, str]]


def summary(runs: Sequence[Made]) -> Summary:
    """What the runs gave."""
    named = list(zip(labels(runs), runs, strict=True))
    known = {name: folder for run in runs for name, folder in run.beside}
    folders = [*known.items(), *((label, run.directory) for label, run in named if run.directory)]
    found = [(label, read_json(folder / "results.json")) for label, folder in folders]
    keys = _columns({key for _, values in found for key in values})
    alone = len({key.partition("/")[0] for key in keys}) == 1
    names = [key.partition("/")[2] if alone else key for key in keys]
    return Summary(
        ["", *(f"{name} {direction(key)[:1]}".strip() for name, key in zip(names, keys, strict=True))],
        [[label, *(format_value(values.get(k)) for k in keys)] for label, values in found],
        [(label, run.reason) for label, run in named if run.directory is None],
    )


def _columns(keys: set[str]) -> list[str]:
    """The most telling metrics of the benchmarks, in reading order; judgements only where there are none.

    Of changed models there are none: a sweep is read for what method or option does best.
    """
    tofu = keys.intersection(_OF_TOFU)
    rest = {key for key in keys if not key.startswith("tofu/") and not split_variant(key)[0]}
    others = {key for key in rest if not key.startswith("judged/")}
    return in_order([*tofu, *shown(others, _MOST_COLUMNS - len(tofu))]) or shown(rest, _MOST_COLUMNS)


def table(found: Summary) -> Table:
    made = Table(box=None, header_style="bold")
    widest = max((len(row[0]) for row in found.rows), default=0)
    for place, head in enumerate(found.heads):
        made.add_column(
            head.replace("_", " ").replace("/", " "),
            justify="right" if place else "left",
            min_width=None if place else min(28, widest),
        )
    for row in found.rows:
        made.add_row(*row)
    return made


def write_markdown(file: Path, found: Summary) -> None:
    failed = [[label, f"failed: {reason}"] for label, reason in found.failed]
    lines = [found.heads, ["---"] * len(found.heads), *found.rows, *failed]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
