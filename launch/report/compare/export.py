"""Write a comparison as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from launch.report import markdown
from launch.report.compare.ranking import ranks
from launch.report.compare.rows import Comparison, Row
from launch.report.compare.tables import BEST, SECOND, Cell, heads, lines, note, plain
from launch.report.output import csv_text

# -- Markdown ----------------------------------------------------------------------------------------------

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#~])")


def in_markdown(comparison: Comparison) -> str:
    """Return a table per task, best in bold, second best underlined."""
    parts = []
    for task, block in lines(comparison):
        if len(comparison.tasks) > 1:
            parts.append(f"## {escaped(task)}\n")
        rows = [
            [
                escaped(row.label) if row.kind == "run" else f"*{row.label}*",
                str(len(row.runs)),
                *map(_marked, cells),
            ]
            for row, cells in block
        ]
        parts.append(markdown.table(["", "n", *map(escaped, heads(comparison.metrics))], rows) + "\n")
    return "\n".join(parts)


def escaped(text: str) -> str:
    """Escape Markdown's marks; bars are escaped with the table."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _marked(cell: Cell) -> str:
    value = {BEST: f"**{cell.value}**", SECOND: f"<u>{cell.value}</u>"}.get(cell.rank or 0, cell.value)
    return value + plain(cell)[len(cell.value) :]


# -- LaTeX -------------------------------------------------------------------------------------------------

_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"±": r"$\pm$", "→": r"$\rightarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"},
    **{"−": "$-$", "×": r"$\times$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$"},
    **{"σ": r"$\sigma$", "τ": r"$\tau$", "“": "``", "”": "''", "’": "'", "…": r"\ldots{}"},
}  # fmt: skip


def in_latex(comparison: Comparison) -> str:
    """Return a tabular for booktabs, best in bold, second best underlined."""
    columns = len(comparison.metrics) + 2
    out = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        " & ".join(["", "$n$", *map(latex, heads(comparison.metrics))]) + r" \\",
    ]
    for task, block in lines(comparison):
        out.append(r"\midrule")
        if len(comparison.tasks) > 1:
            out.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{latex(task)}}}}} \\")
        before = ""
        for row, cells in block:
            if before not in ("", "run", row.kind) and row.kind == "run":
                out.append(r"\midrule")
            before = row.kind
            name = latex(row.label) if row.kind == "run" else rf"\textit{{{row.label}}}"
            out.append(" & ".join([name, str(len(row.runs)), *map(_typeset, cells)]) + r" \\")
    out += [r"\bottomrule", r"\end{tabular}", *(f"% {line}" for line in note(comparison).split("; "))]
    return "\n".join(out) + "\n"


def latex(text: str) -> str:
    """Escape what LaTeX would not print."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def _typeset(cell: Cell) -> str:
    value = latex(cell.value)
    value = {BEST: rf"\textbf{{{value}}}", SECOND: rf"\underline{{{value}}}"}.get(cell.rank or 0, value)
    rest = latex(plain(cell)[len(cell.value) :].strip())
    return rf"{value} {{\scriptsize {rest}}}" if rest else value


# -- CSV ---------------------------------------------------------------------------------------------------


def in_csv(comparison: Comparison, metrics: Sequence[str]) -> str:
    """Return a line per row with its settings and of each metric mean, interval, n, missing and rank."""
    ends = ("", ":low", ":high", ":n", ":missing", ":rank")
    every = (*comparison.rows, *comparison.anchors)
    columns = [key for key in metrics if any(row.mean(key).n for row in every)]
    named = (key + end for key in columns for end in ends)
    table: list[list[Any]] = []
    for task in comparison.tasks:
        anchors, rows = comparison.of_task(task)
        places = {key: [*(None for _ in anchors), *ranks(key, rows, anchors)] for key in columns}
        for i, row in enumerate([*anchors, *rows]):
            cells: list[Any] = []
            for key in columns:
                mean = row.mean(key)
                values = [_exact(mean.mean), _exact(mean.low), _exact(mean.high)]
                cells += [*values, mean.n, mean.missing, places[key][i] or ""]
            settings = [_shared(row, key) for key in comparison.keys]
            table.append([row.kind, task, row.label, row.method, len(row.runs), *settings, *cells])
    return csv_text(["kind", "task", "label", "method", "runs", *comparison.keys, *named], table)


def _exact(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _shared(row: Row, key: str) -> str:
    """A setting that all runs of the row share; "" for one that they are averaged over."""
    values = {repr(run.settings.get(key)): run.settings.get(key) for run in row.runs}
    value = next(iter(values.values())) if len(values) == 1 else None
    return "" if value is None else str(value)
