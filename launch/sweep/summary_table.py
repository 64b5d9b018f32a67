"""What a sweep made, in one table: in the terminal, and as Markdown beside its runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from eval.judgement.aspects import PREFIX
from eval.metric_catalog import declared_keys, direction, in_order, info, shown, with_view
from launch.report import markdown
from launch.report.results_table import format_value
from launch.sweep.objective import missed_by
from unlearn.files import read_json, replacing

_MOST_COLUMNS = 9


@dataclass(frozen=True)
class Made:
    """One run of a sweep: its overrides, and its folder or why there is none.

    `beside` are runs it is compared with, by what they are called: the target and the retain model. `code` is
    its exit code, None while it runs; `value` is what a sweeper optimises (launch/sweep/objective.py).
    `warnings` are those of the run and of what was made for it.
    """

    overrides: tuple[str, ...]
    directory: Path | None
    reason: str = ""
    beside: tuple[tuple[str, Path], ...] = ()
    code: int | None = 0
    value: float | None = None
    feasible: bool | None = None
    warnings: tuple[str, ...] = ()


def labels(runs: Sequence[Made]) -> list[str]:
    """What tells the runs of a sweep apart: the overrides that not all of them share, without their paths."""
    return [" ".join(map(_brief, apart)) or "run" for apart in _apart([run.overrides for run in runs])]


def varying(jobs: Sequence[Sequence[str]], given: Sequence[str] = ()) -> list[str]:
    """The same in full, as one would type them again, without those that were `given` to all."""
    return [" ".join(o.lstrip("+") for o in apart if o not in given) for apart in _apart(jobs)]


def _apart(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[override for override in job if override not in shared] for job in jobs]


def _brief(override: str) -> str:
    """`method=npo` as `npo`, `++seed=1` as `seed=1`, `++method.forget.beta=0.1` as `beta=0.1`."""
    key, _, value = override.partition("=")
    if "." not in key and not key.startswith("+"):
        return value
    if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value):  # drawn by a sampler
        value = f"{float(value):.4g}"
    return f"{key.lstrip('+').rpartition('.')[2]}={value}"


@dataclass(frozen=True)
class Summary:
    """Column heads, a row for each run (first those they are compared with), and what failed and why.

    `best` is of a search: the feasible run of the largest value, or that there is none.
    """

    heads: list[str]
    rows: list[list[str]]
    failed: list[tuple[str, str]]
    best: str = ""


def summary(runs: Sequence[Made]) -> Summary:
    """What the runs gave."""
    named = list(zip(labels(runs), runs, strict=True))
    there = [(label, run) for label, run in named if run.directory]
    searched = any(run.value is not None for run in runs)
    found = [(label, "", _results(folder)) for label, folder in _beside(runs)]
    found += [(label, _goal(run), _results(run.directory)) for label, run in there if run.directory]
    keys = _columns({key for _, _, values in found for key in values})
    alone = len({key.partition("/")[0] for key in keys}) == 1
    names = [key.partition("/")[2] if alone else key for key in keys]
    heads = [f"{name} {direction(key)[:1]}".strip() for name, key in zip(names, keys, strict=True)]
    rows = [[label, goal, *(format_value(values.get(k)) for k in keys)] for label, goal, values in found]
    return Summary(
        ["", "goal ↑", *heads] if searched else ["", *heads],
        rows if searched else [[row[0], *row[2:]] for row in rows],
        [(label, run.reason) for label, run in named if run.reason],
        _best(there) if searched else "",
    )


def _results(folder: Path) -> dict[str, float | None]:
    file = folder / "results.json"
    return read_json(file) if file.is_file() else {}  # its folder may have been removed since


def _beside(runs: Sequence[Made]) -> list[tuple[str, Path]]:
    """The models that runs are compared with; where there are several of a kind, with whose they are."""
    users: dict[tuple[str, Path], list[set[str]]] = {}
    for run in runs:
        for place in run.beside:
            users.setdefault(place, []).append(set(run.overrides))
    several = {name for name, count in Counter(name for name, _ in users).items() if count > 1}
    shared = set.intersection(*(set(run.overrides) for run in runs)) if runs else set()
    named = []
    for (name, folder), theirs in users.items():
        own = sorted(set.intersection(*theirs) - shared) if name in several else []
        named.append((", ".join([name, *map(_brief, own)]), folder))
    return sorted(named, key=lambda place: place[0].partition(",")[0] != "target")


def _goal(run: Made) -> str:
    if run.value is None:
        return ""
    return format_value(run.value) if run.feasible else f"misses by {missed_by(run.value):.2g}"


def _best(named: Sequence[tuple[str, Made]]) -> str:
    feasible = [(run.value, label) for label, run in named if run.feasible and run.value is not None]
    if not feasible:
        return "no trial holds what it is subject to"
    value, label = max(feasible, key=lambda one: one[0])
    return f"best: {label}: {format_value(value)}"


def _columns(keys: set[str]) -> list[str]:
    """The most telling metrics of the benchmarks, in reading order; judgements only where there are none.

    Of changed models there are none: a sweep is read for what method or option does best.
    """
    plain = [key for key in keys if not info(key).variant]
    chosen = with_view(plain, "sweep")
    benches = {info(key).benchmark for key in declared_keys("sweep")}
    others = [key for key in plain if info(key).benchmark not in (PREFIX, *benches)]
    columns = in_order([*chosen, *shown(others, _MOST_COLUMNS - len(chosen))])
    return columns or shown([key for key in plain if info(key).benchmark == PREFIX], _MOST_COLUMNS)


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
    with replacing(file) as temporary:
        temporary.write_text(markdown.table(found.heads, [*found.rows, *failed]) + "\n", encoding="utf-8")
