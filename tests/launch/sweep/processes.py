"""Processes that begin at once: forked from one that has imported what they use."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

LIMIT = 60.0  # seconds until something must have happened
FORKS: ForkServerContext = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["launch.sweep.gpus", "launch.sweep.study"])


def wait_until(sign: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT
    while not sign():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.01)
