"""Open the tracker of a run, with the run's identity, and send it what a complete run has."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.job import Job
from launch.redact import cleaned
from launch.tracking import run_names
from launch.tracking.tracker import NullTracker, open_tracker
from launch.tracking.trackers import TrackedRun, Tracker
from unlearn.files import replacing
from unlearn.run_dir import RunDir


def tracker_of(job: Job, role: str, rundir: RunDir) -> Tracker:
    """Open the tracker of a run, which gets the history of earlier processes of the run."""
    return open_tracker(job.config.tracker, lambda: _described(job, role, rundir))


def send(tracker: Tracker, job: Job, role: str, rundir: RunDir, summary: Mapping[str, Any]) -> None:
    """Send the results of a complete run with its tables, figures and model."""
    from launch.tracking.upload import send_results  # with plotly and SciPy, which takes a second

    send_results(tracker, job, role, rundir, summary)
    with suppress(OSError):
        rundir.unsent.unlink(missing_ok=True)


def send_late(job: Job, role: str, rundir: RunDir) -> None:
    """Send the results of a complete run whose process was killed before it had sent them."""
    if rundir.unsent.is_file() and not isinstance(tracker := tracker_of(job, role, rundir), NullTracker):
        send(tracker, job, role, rundir, rundir.read_results())
        tracker.finish(0)


def _described(job: Job, role: str, rundir: RunDir) -> TrackedRun:
    config = job.config
    settings = config.tracker
    sent = config.model_dump(mode="json", exclude={"root", "dry_run", "tracker"})
    return TrackedRun(
        id=_identity(rundir.path, job.fingerprint),
        name=run_names.title(config, role),
        kind=run_names.kind(config, role),
        project=settings.project,
        group=settings.group or os.environ.get("UNLEARN_SWEEP"),
        tags=[*run_names.tags(config, role), *settings.tags],
        config=cleaned({**sent, "fingerprint": job.fingerprint, "role": role}),
        directory=rundir.path,
        history=rundir.read_history(),
    )


def _identity(directory: Path, fingerprint: str) -> str:
    """Return the id of the run in this directory, drawn when it is first tracked.

    The fingerprint alone would be that of the same configuration in other folders and of other people too.
    """
    if any(directory.glob(f"wandb/*run-*-{fingerprint}")):  # an earlier release tracked it
        return fingerprint
    file = directory / "tracker-id"
    if not file.is_file():
        with replacing(file) as temporary:
            temporary.write_text(f"{fingerprint}-{secrets.token_hex(4)}\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
