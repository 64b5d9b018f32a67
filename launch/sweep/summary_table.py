"""The table of a sweep: in the terminal, and as Markdown next to its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from eval.judgement.aspects import PREFIX
from eval.metric_catalog import declared_keys, in_order, info, shown, with_view
from launch.report import markdown
from launch.report.results_table import arrow, format_value
from launch.sweep.objective import missed_by
from launch.sweep.sweep_run import SweepRun, brief, labels
from unlearn.files import replacing
from unlearn.run_dir import RunDir

_MAX_COLUMNS = 9


@dataclass(frozen=True)
class Summary:
    """Column heads, rows (baselines first, then runs), and the runs that failed with their reasons.

    `best`: of a search, the feasible run with the largest value, or that there is none.
    """

    heads: list[str]
    rows: list[list[str]]
    failed: list[tuple[str, str]]
    best: str = ""


def summary(runs: Sequence[SweepRun]) -> Summary:
    """Return the results of the runs as a table."""
    named = list(zip(labels(runs), runs, strict=True))
    finished = [(label, run) for label, run in named if run.directory]
    searched = any(run.value is not None for run in runs)
    results = [(label, "", RunDir(folder).read_results()) for label, folder in _baselines(runs)]
    results += [(label, _goal(run), _results(run, run.directory)) for label, run in finished if run.directory]
    keys = _columns({key for _, _, values in results for key in values})
    alone = len({key.partition("/")[0] for key in keys}) == 1
    names = [key.partition("/")[2] if alone else key for key in keys]
    heads = [f"{name} {arrow(key)}".strip() for name, key in zip(names, keys, strict=True)]
    rows = [[label, goal, *(format_value(values.get(k)) for k in keys)] for label, goal, values in results]
    return Summary(
        ["", "goal ↑", *heads] if searched else ["", *heads],
        rows if searched else [[row[0], *row[2:]] for row in rows],
        [(label, run.reason) for label, run in named if run.reason],
        _best(finished) if searched else "",
    )


def _results(run: SweepRun, directory: Path) -> dict[str, float | None]:
    return dict(run.results) if run.results is not None else RunDir(directory).read_results()


def _baselines(runs: Sequence[SweepRun]) -> list[tuple[str, Path]]:
    """The baselines of the runs; if there are several of a kind, with the overrides of their runs."""
    users: dict[tuple[str, Path], list[set[str]]] = {}
    for run in runs:
        for baseline in run.baselines:
            users.setdefault(baseline, []).append(set(run.overrides))
    several = {name for name, count in Counter(name for name, _ in users).items() if count > 1}
    shared = set.intersection(*(set(run.overrides) for run in runs)) if runs else set()
    named = []
    for (name, folder), theirs in users.items():
        own = sorted(set.intersection(*theirs) - shared) if name in several else []
        named.append((", ".join([name, *map(brief, own)]), folder))
    return sorted(named, key=lambda baseline: baseline[0].partition(",")[0] != "target")


def _goal(run: SweepRun) -> str:
    if run.value is None:
        return ""
    return format_value(run.value) if run.feasible else f"misses by {missed_by(run.value):.2g}"


def _best(named: Sequence[tuple[str, SweepRun]]) -> str:
    feasible = [(run.value, label) for label, run in named if run.feasible and run.value is not None]
    if not feasible:
        return "no trial meets the constraints (goal.subject_to)"
    value, label = max(feasible, key=lambda one: one[0])
    return f"best: {label}: {format_value(value)}"


def _columns(keys: set[str]) -> list[str]:
    """The most important metrics of the benchmarks, in reading order; judgements only if there are none.

    Without those of variants: a sweep compares methods and options.
    """
    plain = [key for key in keys if not info(key).variant]
    chosen = with_view(plain, "sweep")
    benches = {info(key).benchmark for key in declared_keys("sweep")}
    others = [key for key in plain if info(key).benchmark not in (PREFIX, *benches)]
    columns = in_order([*chosen, *shown(others, _MAX_COLUMNS - len(chosen))])
    return columns or shown([key for key in plain if info(key).benchmark == PREFIX], _MAX_COLUMNS)


def table(summed: Summary) -> Table:
    """Return the table for the terminal."""
    shown_table = Table(box=None, header_style="bold")
    widest = max((len(row[0]) for row in summed.rows), default=0)
    for place, head in enumerate(summed.heads):
        shown_table.add_column(
            head.replace("_", " ").replace("/", " "),
            justify="right" if place else "left",
            min_width=None if place else min(28, widest),
        )
    for row in summed.rows:
        shown_table.add_row(*row)
    return shown_table


def write_markdown(file: Path, summed: Summary) -> None:
    """Write the table as Markdown, with a row for each run that failed."""
    failed = [[label, f"failed: {reason}"] for label, reason in summed.failed]
    with replacing(file) as temporary:
        temporary.write_text(markdown.table(summed.heads, [*summed.rows, *failed]) + "\n", encoding="utf-8")
