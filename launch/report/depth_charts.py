"""Charts of the depth of unlearning by block, from what `eval.variants.depth` leaves in a run's directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.report.traces import Figure, line, over_steps
from unlearn.files import read_json
from unlearn.run_dir import RunDir


def depth_charts(run_dir: Path, role: str) -> list[Figure]:
    """Return two charts over the blocks: what overwriting each costs, and what each decodes to; else none.

    role: of the run's own model.

    Raises:
        BrokenFile: layers.json is not JSON.
    """
    file = RunDir(run_dir).eval / "depth" / "layers.json"
    if not file.is_file():
        return []
    rows = [{"step": row["block"], **row} for row in read_json(file)["blocks"]]
    own = {"retain model": "retain_drop", role: "drop"}
    decoded = {"target": "target_probability", "retain model": "retain_probability", role: "probability"}
    return [
        _over_blocks("Drop of the answer's log-probability", "nats per token, block overwritten", rows, own),
        _over_blocks("Probability of the answer", "decoded from each block by logit lens", rows, decoded),
    ]


def _over_blocks(title: str, hint: str, rows: list[dict[str, Any]], keys: Mapping[str, str]) -> Figure:
    lines = [line(rows, key, name=role, role=role) for role, key in keys.items()]
    axes = over_steps(legend=True) | {"xaxis": {"title": {"text": "block"}, "dtick": 1 + len(rows) // 16}}
    return Figure(title, hint, lines, axes)
