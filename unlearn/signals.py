"""What ends a run that can be continued: signals that ask it to stop, and a start with less memory."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

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


Handlers: TypeAlias = Mapping[int, Any]
"""What is called, or done, by number of a signal."""


def stop_handlers() -> Handlers:
    """Return what stop signals call at present."""
    return {number: signal.getsignal(number) for number in STOPPING}


@contextmanager
def handling(handlers: Handlers) -> Iterator[None]:
    """Let signals call these; restore the previous handlers afterwards."""
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def on_stop(handler: Callable[[int], None]) -> AbstractContextManager[None]:
    """Return a context in which `handler` is called with the number of a stop signal."""
    return handling(dict.fromkeys(STOPPING, lambda number, _: handler(number)))


def stop_with_parent() -> None:
    """Let the end of the parent stop this process (Linux): the next command may write to the same files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
