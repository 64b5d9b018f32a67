"""Open the tracker of a run, with the run's identity."""

from __future__ import annotations

import os

from launch.job import Job
from launch.redact import cleaned
from launch.tracking import run_names
from launch.tracking.tracker import Tracker, open_tracker
from unlearn.run_dir import RunDir


def tracker_of(job: Job, role: str, rundir: RunDir) -> Tracker:
    """Open the tracker of a run; it does not repeat what earlier processes of the run logged."""
    config = job.config
    settings = config.tracker
    sent = config.model_dump(mode="json", exclude={"root", "dry_run", "tracker"})
    return open_tracker(
        mode=settings.mode,
        project=settings.project,
        entity=settings.entity,
        group=settings.group or os.environ.get("UNLEARN_SWEEP"),
        job_type=run_names.kind(config, role),
        name=run_names.title(config, role),
        run_id=job.fingerprint,
        tags=[*run_names.tags(config, role), *settings.tags],
        config=cleaned({**sent, "fingerprint": job.fingerprint, "role": role}),
        directory=rundir.path,
        logged=rundir.read_history(),
    )
