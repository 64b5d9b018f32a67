"""Write values, and the table of a run in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from eval.metric_catalog import has_retain_set, in_order, info

MISSING = "–"
LEGEND = "↑ higher, ↓ lower is better or more forgotten   → best near the retain model's   → 0 best near 0"


def format_value(value: float | None) -> str:
    """Write about five significant digits; small and large numbers as 1.2e-16; "–" for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value)
    if isinstance(value, int) or math.isinf(value):
        return f"{value:,}"
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.1e}"
    return f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.0f}"


def arrow(key: str) -> str:
    """Return the arrow of a metric as the legend explains it; "" where no direction is declared."""
    way = info(key).direction
    return "→ 0" if way.startswith("→ 0") else way[:1]


def result_table(
    columns: Mapping[str, Mapping[str, float | None]], keys: Sequence[str] | None = None
) -> Table:
    """Return a table with metrics down and models across; `columns`: a model's flat results by its title.

    keys: the rows, in this order; without it every key of any column, in reading order.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", overflow="fold")  # the column that wraps in a narrow terminal
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    before: list[str] | None = None
    for key in in_order(key for column in columns.values() for key in column) if keys is None else keys:
        block = _block(key)
        if before is not None and block != before:
            table.add_row()
        before = block
        cells = [format_value(column.get(key)) for column in columns.values()]
        table.add_row(key, *cells, arrow(key))
    return table


def _block(key: str) -> list[str]:
    """What the rows of a block share: a kind of variant, or a benchmark and, if it has several, a set."""
    one = info(key)
    if one.variant:
        return [one.variant.split("/")[0]]
    return [one.benchmark, one.group if has_retain_set(one.benchmark) else ""]
