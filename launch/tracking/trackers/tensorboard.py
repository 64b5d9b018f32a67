"""TensorBoard: an event log in the run's directory, `tensorboard/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launch.report.markdown import table
from launch.report.settings import flat, settings_of
from launch.tracking.trackers._base import Row
from launch.tracking.trackers._numbers import NumberTracker


class Tensorboard(NumberTracker):
    """Writes numbers as scalars and tables as text. A run that is continued adds a file to its log.

    The numbers of the whole run are scalars below `summary/` and metrics of the hyper-parameters. TensorBoard
    has neither plotly's charts nor models: a table has the points, and the model's folder and facts.
    """

    @classmethod
    def check(cls, options: Any) -> list[str]:
        known = find_spec("tensorboard") is not None
        text = "tracker.name=tensorboard needs TensorBoard: pip install 'unlearn-lab[tensorboard]'"
        return [] if known else [text]

    def open(self) -> dict[str, dict[int, float]]:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run.directory / "tensorboard"
        known = _scalars(folder) if (earlier := any(folder.glob("events.*"))) else {}
        self.writer = SummaryWriter(str(folder))
        if not earlier:
            about = {"name": self.run.name, "tags": [*self.run.tags], **self.run.config}
            self.writer.add_text("config", f"```\n{json.dumps(about, indent=2)}\n```")
        return known

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()  # a process that is killed leaves what history.jsonl has

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        cells = [["–" if cell is None else " ".join(str(cell).split()) for cell in row] for row in rows]
        self.writer.add_text(name, table(columns, cells), self.step)

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        points = [[t.get("name"), *p] for t in figure["data"] for p in zip(t["x"], t["y"], strict=True)]
        self.table(name, ["trace", "x", "y"], points)

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        self.table("model", ["", name], [["folder", folder], *map(list, facts.items())])

    def summary(self, values: Row) -> None:
        from torch.utils.tensorboard.summary import hparams

        tagged = {f"summary/{key}": value for key, value in values.items()}
        settings = {"kind": self.run.kind, "group": self.run.group, **settings_of(flat(self.run.config))}
        plain = {key: v if isinstance(v, int | float) else str(v) for key, v in settings.items()}
        log: Any = self.writer.file_writer
        for part in hparams(plain, dict.fromkeys(tagged, 0.0)):  # the names: the values are scalars
            log.add_summary(part)
        super().summary(tagged)

    def finish(self, exit_code: int = 0) -> None:
        self.writer.close()


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: all, not a sample
    return {tag: {each.step: each.value for each in log.Scalars(tag)} for tag in log.Tags()[SCALARS]}
