"""The results of a check on a GPU as Markdown: a table for each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "training": "Training on short answers", "memory": "Training on texts of 512 tokens",
    "geffect": "The G-effect, by parameter, example and token",
    "evaluation": "Evaluation: TOFU's suite on the synthetic authors", "generation": "Generation",
    "effects": "Effects of a direction on single examples", "out_of_memory": "Out of memory",
    "largest": "The largest model that fits",
}  # fmt: skip


def markdown(results: Mapping[str, Any]) -> str:
    """Return the document of gpu.json's content."""
    lines = ["# Check on a GPU", ""]
    machine = results.get("machine", {})
    lines += _table([{"": name, "value": value} for name, value in machine.items() if value])
    for name, part in results["parts"].items():
        lines += ["", f"## {TITLES[name]}", ""]
        lines += _table(part["rows"]) if part.get("rows") else [f"Not measured: {part.get('error')}"]
    return "\n".join([*lines, "", f"Took {results['took']:.0f} s of {results['seconds']:.0f}.", ""])


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table with the columns of all rows; a column without values is left out."""
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return lines + [f"| {' | '.join(_cell(name, row.get(name)) for name in columns)} |" for row in rows]


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value).replace("|", "\\|").replace("\n", " ")
    if column.startswith("share"):
        return f"{100 * value:.0f} %"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
