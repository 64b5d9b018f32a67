"""What ends a run that can be continued: signals that ask it to stop, and a start with less memory."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 75
"""Exit code of a run that a signal stopped and that can be resumed (sysexits' EX_TEMPFAIL: try again)."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Schedulers can be asked to send one of the last two before a time limit."""
_PR_SET_PDEATHSIG = 1


class Stopped(BaseException):
    """A signal asked the run to stop; it can be resumed. Not an error to catch, like KeyboardInterrupt."""


class StartAgain(BaseException):
    """A pass did not fit in memory and cannot be done again where it is; the run must begin again.

    Raised where a pass has collectives: the other processes may wait in one. The smaller portion is in the
    run's directory by then. Not an error to catch, like `Stopped`.
    """


@contextmanager
def on_stop(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` with the number of a stop signal; restore the previous handlers afterwards."""
    previous = {number: signal.signal(number, lambda n, _: handler(n)) for number in STOPPING}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def stop_with_parent() -> None:
    """Let the end of the parent stop this process (Linux): the next command may write to the same files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
