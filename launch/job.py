"""A run that is ready to execute, as its `config.yaml` describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unlearn.config import RunConfig
from unlearn.models.weights import WeightsSource


@dataclass(frozen=True)
class Baselines:
    """What a run is compared with: the directories of the runs that evaluate the retain model and the target,
    and a published `log` in place of the former; `unlearned` evaluates the job's model of that name."""

    retain: Path | None = None
    target: Path | None = None
    log: Path | None = None
    unlearned: Path | None = None


@dataclass(frozen=True)
class Job:
    """A run that is ready to execute: what it starts from, and what it is compared with.

    `reinforced` is the target trained further on the forget set, `unlearned` the target after another method,
    for methods that need them.
    """

    config: RunConfig
    fingerprint: str
    start: WeightsSource
    baselines: Baselines = Baselines()
    reinforced: WeightsSource | None = None
    unlearned: WeightsSource | None = None
