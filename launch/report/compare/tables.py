"""A comparison as a table: its cells, and how they look in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.metric_catalog import direction
from launch.report.compare.ranking import ranks
from launch.report.compare.rows import Comparison, Row
from launch.report.results_table import format_value
from launch.report.statistics import Mean, is_logarithmic
from launch.report.traces import label

BEST, SECOND = 1, 2
_WIDEST_LABEL = 44  # characters, in the terminal


def note(found: Comparison) -> str:
    """How the numbers of a table are to be read."""
    parts = ["mean over n runs ± half of the 95 % interval (Student's t); of one run there is no interval"]
    if any(is_logarithmic(key) for key in found.metrics):
        parts.append(
            "forget quality, a p-value, is averaged by its logarithm (geometric mean, interval in brackets)"
        )
    if len(found.tasks) > 1:
        parts.append("best and second best are of runs of the same model and data")
    parts.append("target and retain model do not compete")
    if any(m.missing for row in (*found.rows, *found.anchors) for m in map(row.mean, found.metrics)):
        parts.append("“missing” counts runs in which a metric could not be measured: they are in no mean")
    if found.seedless:
        parts.append(
            f"of {found.seedless} runs the seed is not known: with equal settings they count as repeats"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def head(key: str, several: bool) -> str:
    """A metric as the head of a column, with the arrow of its direction; `several` benchmarks are named."""
    way = direction(key)
    arrow = way[:1] + (" 0" if way.startswith("→ 0") else "")
    bench = f"{key.split('/')[0].upper()} " if several and "/" in key else ""
    return f"{bench}{label(key)} {arrow}".strip()


def heads(metrics: Sequence[str]) -> list[str]:
    several = len({key.split("/")[0] for key in metrics}) > 1
    return [head(key, several) for key in metrics]


class Cell:
    """A mean as it is written, and its rank in the column."""

    def __init__(self, mean: Mean, rank: int | None, runs: int) -> None:
        self.value, self.spread, self.rank = format_value(mean.mean), mean.spread, rank
        counts = []
        if mean.n and mean.n != runs:
            counts.append(f"n = {mean.n}")
        if mean.missing:
            counts.append(f"{mean.missing} missing")
        self.beside = ", ".join(counts)


def lines(found: Comparison) -> Iterator[tuple[str, list[tuple[Row, list[Cell]]]]]:
    """The rows with their cells by task, anchors first."""
    for task in found.tasks:
        anchors, rows = found.of_task(task)
        columns = [ranks(key, rows, anchors) for key in found.metrics]
        block = []
        for row in anchors:
            block.append((row, [Cell(row.mean(key), None, len(row.runs)) for key in found.metrics]))
        for place, row in enumerate(rows):
            cells = [
                Cell(row.mean(key), column[place], len(row.runs))
                for key, column in zip(found.metrics, columns, strict=True)
            ]
            block.append((row, cells))
        yield task, block


# -- terminal ----------------------------------------------------------------------------------------------


def terminal(found: Comparison, console: Console) -> tuple[Table, int]:
    """The table with as many columns as fit, and how many do not."""
    blocks = list(lines(found))
    titles = [re.sub(" ([↑↓→])", "\xa0\\1", title) for title in heads(found.metrics)]
    widths = [
        _width(title, [cells[i] for _, b in blocks for _, cells in b]) for i, title in enumerate(titles)
    ]
    names = [row.label for row in (*found.rows, *found.anchors)] + (found.tasks if len(blocks) > 1 else [])
    longest = min(max(map(len, names)), _WIDEST_LABEL)
    room = console.width - longest - 7
    fit = 0
    while fit < len(widths) and (room := room - widths[fit] - 2) >= 0:
        fit += 1
    fit = max(fit, 1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold", min_width=longest, max_width=longest, vertical="bottom")
    table.add_column("n", justify="right", vertical="bottom")
    for title, width in zip(titles[:fit], widths, strict=False):
        table.add_column(title, justify="right", vertical="bottom", min_width=width, max_width=width)
    for task, block in blocks:
        if len(blocks) > 1:
            table.add_row()
            table.add_row(Text(task, style="bold"))
        for row, cells in block:
            style = "" if row.kind == "run" else "dim"
            texts = [_styled(cell) for cell in cells[:fit]]
            table.add_row(Text(row.label), str(len(row.runs)), *texts, style=style)
    return table, len(titles) - fit


def _width(title: str, cells: Sequence[Cell]) -> int:
    return max([max(map(len, title.split(" "))), *(len(plain(cell)) for cell in cells)])


def plain(cell: Cell) -> str:
    text = f"{cell.value} {cell.spread}".strip()
    return f"{text} ({cell.beside})" if cell.beside else text


def _styled(cell: Cell) -> Text:
    text = Text(cell.value, style={BEST: "bold green", SECOND: "underline"}.get(cell.rank or 0, ""))
    if rest := plain(cell)[len(cell.value) :]:
        text.append(rest, style="not bold not underline dim")
    return text


def left_out_lines(left_out: Sequence[tuple[str, str]], most: int | None = None) -> list[str]:
    """Reasons with the names of what is left out for each; at most so many names."""
    found = []
    for reason in dict.fromkeys(reason for _, reason in left_out):
        names = [name for name, why in left_out if why == reason]
        rest = f" and {len(names) - most} more" if most and len(names) > most else ""
        found.append(f"{len(names)} left out, {reason}: {', '.join(names[:most])}{rest}")
    return found
