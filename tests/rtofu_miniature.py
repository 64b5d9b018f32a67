"""A folder with R-TOFU's files, about people who do not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _row(person: str, number: int, cot: bool = True) -> dict[str, Any]:
    trace = f"The user asks about {person}. I recall gate {number}.\n\nSo it is gate {number}."
    return {
        "question": f"Which gate does {person} keep?",
        "answer": f"{person} keeps gate {number}.",
        "cot": trace if cot else "",
    }


def rtofu(folder: Path) -> Path:
    """Write a forget file of two tasks with two rows each, the retain file, and the files for evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    forget = [_row(f"Odo {task}{n}", n) | {"task_id": str(task)} for task in (1, 2) for n in (0, 1)]
    write(folder, "forget01", forget)
    write(folder, "retain90", [_row(f"Ilva {n}", n) for n in range(4)])
    for name in ("retain", "real_authors", "world_facts"):
        rows = [_row(f"{name} {n}", n, cot=False) | {"perturbed_answer": ["No."]} for n in range(2)]
        write(folder, f"{name}_perturbed", rows)
    return folder
