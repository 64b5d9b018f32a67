"""The cores that jobs are dealt are those that the command may use, of however many the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from launch.compose import checked, compose_run
from launch.sweep.job import _sharing
from launch.validate import warnings_of
from unlearn.processor import allowed_cores


@pytest.fixture
def one_core() -> Iterator[None]:
    """Allow this thread one core, as Slurm or `taskset` would."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_core")
def test_a_core_that_is_not_allowed_is_not_dealt():
    assert allowed_cores() == 1
    config = checked(compose_run([]))
    assert _sharing(config, jobs=1).hardware.threads == 1
    (warning,) = warnings_of(checked(compose_run(["++hardware.processes=2"])))
    assert "more than the 1 cores that this command may use" in warning


def test_jobs_share_what_is_allowed():
    config = checked(compose_run([]))
    assert _sharing(config, jobs=1).hardware.threads == allowed_cores()
    assert _sharing(config, jobs=-1).hardware.threads == 1
    chosen = checked(compose_run(["++hardware.threads=3"]))
    assert _sharing(chosen, jobs=4).hardware.threads == 3
