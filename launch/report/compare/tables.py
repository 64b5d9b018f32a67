"""The cells of a comparison, and its table in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.metric_catalog import info
from launch.report.compare.ranking import ranks
from launch.report.compare.rows import Comparison, Row
from launch.report.results_table import arrow, format_value
from launch.report.statistics import Mean, is_logarithmic
from launch.report.traces import label

BEST, SECOND = 1, 2
_WIDEST_LABEL = 44  # characters, in the terminal


def note(comparison: Comparison) -> str:
    """Return how to read the numbers of the table."""
    parts = ["mean over n runs ± half of the 95 % interval (Student's t); of one run there is no interval"]
    if p_values := [label(key) for key in comparison.metrics if is_logarithmic(key)]:
        parts.append(
            f"{', '.join(p_values)}, a p-value, is averaged by its logarithm (geometric mean, interval in "
            "brackets)"
        )
    if len(comparison.tasks) > 1:
        parts.append("best and second best are of runs of the same model and data")
    parts.append("target and retain model do not compete")
    if any(
        m.missing
        for row in (*comparison.rows, *comparison.anchors)
        for m in map(row.mean, comparison.metrics)
    ):
        parts.append("“missing” counts runs in which a metric could not be measured: they are in no mean")
    if comparison.seedless:
        parts.append(
            f"of {comparison.seedless} runs the seed is not known: with equal settings they count as repeats"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def heads(metrics: Sequence[str]) -> list[str]:
    """Return column heads: the variant of the model, the benchmark if there are several, metric and arrow."""
    several = len({info(key).benchmark for key in metrics}) > 1
    return [_head(key, several) for key in metrics]


def _head(key: str, several: bool) -> str:
    one = info(key)
    variant = re.sub("[/_]", " ", one.variant)
    bench = one.benchmark.upper() if several else ""
    return " ".join(part for part in (variant, bench, label(key), arrow(key)) if part)


class Cell:
    """A mean as text, and its rank in the column."""

    def __init__(self, mean: Mean, rank: int | None, runs: int) -> None:
        self.value, self.spread, self.rank = format_value(mean.mean), mean.spread, rank
        counts = []
        if mean.n and mean.n != runs:
            counts.append(f"n = {mean.n}")
        if mean.missing:
            counts.append(f"{mean.missing} missing")
        self.counts = ", ".join(counts)


def lines(comparison: Comparison) -> Iterator[tuple[str, list[tuple[Row, list[Cell]]]]]:
    """Yield the rows with their cells by task, anchors first."""
    for task in comparison.tasks:
        anchors, rows = comparison.of_task(task)
        columns = [ranks(key, rows, anchors) for key in comparison.metrics]
        block = []
        for row in anchors:
            block.append((row, [Cell(row.mean(key), None, len(row.runs)) for key in comparison.metrics]))
        for place, row in enumerate(rows):
            cells = [
                Cell(row.mean(key), column[place], len(row.runs))
                for key, column in zip(comparison.metrics, columns, strict=True)
            ]
            block.append((row, cells))
        yield task, block


# -- terminal ----------------------------------------------------------------------------------------------


def terminal(comparison: Comparison, console: Console) -> tuple[Table, int]:
    """Return the table with the columns that fit, and the number of those that do not."""
    blocks = list(lines(comparison))
    titles = [re.sub(" ([↑↓→])", "\xa0\\1", title) for title in heads(comparison.metrics)]
    widths = [
        _width(title, [cells[i] for _, b in blocks for _, cells in b]) for i, title in enumerate(titles)
    ]
    names = [row.label for row in (*comparison.rows, *comparison.anchors)] + (
        comparison.tasks if len(blocks) > 1 else []
    )
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
    """Return the text of a cell without marks."""
    text = f"{cell.value} {cell.spread}".strip()
    return f"{text} ({cell.counts})" if cell.counts else text


def _styled(cell: Cell) -> Text:
    text = Text(cell.value, style={BEST: "bold green", SECOND: "underline"}.get(cell.rank or 0, ""))
    if rest := plain(cell)[len(cell.value) :]:
        text.append(rest, style="not bold not underline dim")
    return text
