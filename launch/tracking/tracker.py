"""The tracker: one object to log to. W&B mirrors the files of the run, and cannot stop it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from launch.tracking.wandb_session import Mode, mode_of_variables, open_run, staged_with

log = logging.getLogger(__name__)

Row = Mapping[str, float | None]
_LONGEST = {"name": 128, "group": 128, "job_type": 64, "tag": 64}  # characters that W&B takes


class Tracker(Protocol):
    """The interface to the rest of the program. No method raises, even if the service fails."""

    def log(self, row: Row, step: int) -> None:
        """Log numbers of an optimizer step; rows of the same step are merged, steps must not go back."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table of cells (text, number or None) at the last logged step."""

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Log a chart, as plotly's `{data, layout}`, at the last logged step."""

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        """Upload the files of a model with some facts about it."""

    def summary(self, values: Row) -> None:
        """Write the numbers of the whole run; None stands for "could not be measured"."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the tracker; later calls are ignored."""


class NullTracker:
    """A tracker that ignores everything."""

    def log(self, row: Row, step: int) -> None: ...

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def figure(self, name: str, figure: Mapping[str, Any]) -> None: ...

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None: ...

    def summary(self, values: Row) -> None: ...

    def finish(self, exit_code: int = 0) -> None: ...


class WandbTracker:
    """Mirrors to one W&B run until the first failure; after that it does nothing.

    logged: rows with `step` that an earlier process of the run logged; they are not sent again.
    """

    def __init__(self, run: Any, logged: Sequence[Mapping[str, Any]] = ()) -> None:
        self._run: Any | None = run
        self._logged: dict[int, set[str]] = {}
        for row in logged:
            self._logged.setdefault(int(row["step"]), set()).update(row)
        self._step = max(self._logged, default=0)
        self._first = int(run.step)  # online, a continued run begins after its last row

    def log(self, row: Row, step: int) -> None:
        def send(run: Any) -> None:
            self._step = max(self._step, step)
            run.log({**new, "step": step}, step=step)

        known = self._logged.get(step, set())
        new = {key: value for key, value in row.items() if value is not None and key not in known}
        if new.keys() - {"step"}:
            self._guarded(f"logging step {step}", send)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            # Mixed types: a column of numbers may hold None or an int among floats.
            table = wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)
            with staged_with(run):
                self._file(run, name, table)

        self._guarded(f"logging the table {name!r}", send)

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        def send(run: Any) -> None:
            import plotly.graph_objects as go
            import wandb

            self._file(run, name, wandb.Plotly(go.Figure(figure)))

        self._guarded(f"logging the figure {name!r}", send)

    def model(self, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
        def send(run: Any) -> None:
            import wandb

            plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[-128:]
            artifact = wandb.Artifact(plain, type="model", metadata=_finite(facts))
            # Immutable: W&B uploads the files themselves, without a copy.
            artifact.add_dir(str(folder.absolute()), policy="immutable")
            run.log_artifact(artifact)

        self._guarded(f"logging the model {folder}", send)

    def summary(self, values: Row) -> None:
        self._guarded("writing the summary", lambda run: run.summary.update(_finite(values)))

    def finish(self, exit_code: int = 0) -> None:
        self._guarded("finishing", lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _file(self, run: Any, name: str, value: Any) -> None:
        """Log at the last step, or at the next one if an earlier process logged the last."""
        step = max(self._first, self._step + (self._step in self._logged))
        run.log({name: value, "step": step}, step=step)

    def _guarded(self, what: str, call: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._run = None
            _warn(what, error)


def open_tracker(
    *,
    mode: str,
    project: str,
    entity: str | None,
    group: str | None,
    job_type: str,
    name: str,
    run_id: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    directory: Path,
    logged: Sequence[Mapping[str, Any]] = (),
) -> Tracker:
    """Open the tracker of one run; it ignores everything if `mode` is "disabled" or W&B cannot be opened.

    mode: "auto" obeys WANDB_DISABLED and WANDB_MODE if they are set, else is "online" if an API key is
        configured (environment, W&B settings or netrc), else "offline". Online, if the service does not
        answer, the run is logged offline.
    run_id: the same id continues the same run. Offline, a continued run is a second `offline-run-*` folder
        with the same id; `wandb sync` joins them.
    config: goes to W&B unchanged. The caller removes what must not leave the machine, such as home paths.
    directory: holds W&B's folder `wandb/`; made if missing.
    logged: history of earlier processes of this run; used if their W&B folders are in `directory`.
    """
    try:
        if mode == "disabled" or (mode == "auto" and mode_of_variables() == "disabled"):
            return NullTracker()
        if mode not in get_args(Mode):
            raise ValueError(f"unknown tracker mode {mode!r}; use one of {', '.join(get_args(Mode))}")
        earlier = any(directory.glob(f"wandb/*run-*-{run_id}"))
        cut = {"name": name, "group": group, "job_type": job_type}
        identity = {
            **{key: text and text[: _LONGEST[key]] for key, text in cut.items()},
            "project": project,
            "entity": entity,
            "id": run_id,
            "tags": list(dict.fromkeys(tag[: _LONGEST["tag"]] for tag in tags if tag)),
        }
        run = open_run(cast(Mode, mode), directory, identity, config)
    except Exception as error:
        _warn("opening", error)
        return NullTracker()
    return WandbTracker(run, logged if earlier else ())


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _warn(what: str, error: Exception) -> None:
    log.warning(
        "W&B tracking stopped: %s failed (%s: %s). The run goes on without it; "
        "its files (history.jsonl, results.json) hold everything.",
        what,
        type(error).__name__,
        error,
    )
