"""How values are written, and the table of a run in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from eval.metric_catalog import direction, has_retain_set, in_order, info

MISSING = "–"
LEGEND = (
    "↑ higher is better (on forget: more forgotten)   ↓ lower is forgetting   "
    "→ a value is best: a membership AUC near the retain model's, about 0.5; privleak near 0"
)


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
    """What rows that stand together share: a kind of change; a benchmark; of several sets' rows the set."""
    one = info(key)
    if one.variant:
        return [one.variant.split("/")[0]]
    return [one.benchmark, one.group if has_retain_set(one.benchmark) else ""]
