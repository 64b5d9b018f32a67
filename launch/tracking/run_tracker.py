"""Open the tracker of a run, with the run's identity."""

from __future__ import annotations

import os

from launch.job import Job
from launch.redact import cleaned
from launch.tracking import run_names
from launch.tracking.tracker import open_tracker
from launch.tracking.trackers import TrackedRun, Tracker
from unlearn.run_dir import RunDir


def tracker_of(job: Job, role: str, rundir: RunDir) -> Tracker:
    """Open the tracker of a run, which gets the history of earlier processes of the run."""
    config = job.config
    settings = config.tracker
    sent = config.model_dump(mode="json", exclude={"root", "dry_run", "tracker"})
    run = TrackedRun(
        id=job.fingerprint,
        name=run_names.title(config, role),
        kind=run_names.kind(config, role),
        project=settings.project,
        group=settings.group or os.environ.get("UNLEARN_SWEEP"),
        tags=[*run_names.tags(config, role), *settings.tags],
        config=cleaned({**sent, "fingerprint": job.fingerprint, "role": role}),
        directory=rundir.path,
        history=rundir.read_history(),
    )
    return open_tracker(settings, run)
