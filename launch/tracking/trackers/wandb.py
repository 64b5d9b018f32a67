"""Weights & Biases: online, offline or off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from launch.tracking.trackers._base import Row, TrackedRun, Tracker
from launch.tracking.wandb_session import Mode, mode_of_variables, open_run, staged_with
from unlearn.config import Section
from unlearn.errors import UserError
from unlearn.files import finite

_LONGEST = {"name": 128, "group": 128, "job_type": 64, "tag": 64}  # characters that W&B takes


class WandbOptions(Section):
    """The keys of `tracker` with `name: wandb`."""

    mode: Mode = Field("auto", description="auto: online with a key, else offline")
    entity: str | None = Field(None, description="user or team; null: the key's own")


class Wandb(Tracker):
    """Mirrors to one W&B run, whose id is the run's.

    `mode: auto` obeys WANDB_DISABLED and WANDB_MODE if they are set, else is online if an API key is
    configured (environment, W&B settings or netrc), else offline. Online, if the service does not answer,
    the run is logged offline. Offline, a continued run is a second `offline-run-*` folder with the same id;
    `wandb sync` joins them. Rows that an earlier process logged to W&B in this directory are not sent again.
    """

    Options = WandbOptions

    def __init__(self, options: WandbOptions, run: TrackedRun) -> None:
        super().__init__(options, run)
        earlier = any(run.directory.glob(f"wandb/*run-*-{run.id}"))
        self.wandb_run = open_run(options.mode, run.directory, _identity(options, run), run.config)
        self._logged: dict[int, set[str]] = {}
        self._step = 0
        self._first = int(self.wandb_run.step)  # online, a continued run begins after its last row
        for row in run.history:
            if not earlier and not self._first:  # the run began without this tracker
                self.log(row, int(row["step"]))
            self._logged.setdefault(int(row["step"]), set()).update(row)
        self._step = max(self._logged, default=0)

    @classmethod
    def check(cls, options: Any) -> list[str]:
        try:
            cls.off(options)
        except UserError as error:
            return [str(error)]
        return []

    @classmethod
    def off(cls, options: Any) -> bool:
        """
        Raises:
            UserError: WANDB_MODE is no mode of W&B.
        """
        mode: Mode = options.mode
        return mode == "disabled" or (mode == "auto" and mode_of_variables() == "disabled")

    def log(self, row: Row, step: int) -> None:
        known = self._logged.get(step, set())
        new = {key: value for key, value in row.items() if value is not None and key not in known}
        if new.keys() - {"step"}:
            self._step = max(self._step, step)
            # Online a continued run has no step before its first: what was measured at it joins the next row.
            self.wandb_run.log({**new, "step": step}, step=max(step, self._first))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        # Mixed types: a column of numbers may hold None or an int among floats.
        table = wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)
        with staged_with(self.wandb_run):
            self._file(name, table)

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        import plotly.graph_objects as go
        import wandb

        self._file(name, wandb.Plotly(go.Figure(figure)))

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        import wandb

        plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[-128:]
        artifact = wandb.Artifact(plain, type="model", metadata=finite(facts))
        # Immutable: W&B uploads the files themselves, without a copy.
        artifact.add_dir(str(folder.absolute()), policy="immutable")
        self.wandb_run.log_artifact(artifact)

    def summary(self, values: Row) -> None:
        self.wandb_run.summary.update(finite(values))

    def finish(self, exit_code: int = 0) -> None:
        self.wandb_run.finish(exit_code=exit_code)

    def _file(self, name: str, value: Any) -> None:
        """Log at the last step, or at the next one if an earlier process logged the last."""
        step = max(self._first, self._step + (self._step in self._logged))
        self.wandb_run.log({name: value, "step": step}, step=step)


def _identity(options: WandbOptions, run: TrackedRun) -> dict[str, Any]:
    cut = {"name": run.name, "group": run.group, "job_type": run.kind}
    return {
        **{key: text and text[: _LONGEST[key]] for key, text in cut.items()},
        "project": run.project,
        "entity": options.entity,
        "id": run.id,
        "tags": list(dict.fromkeys(tag[: _LONGEST["tag"]] for tag in run.tags if tag)),
    }
