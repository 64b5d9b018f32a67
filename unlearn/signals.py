"""The signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 75
"""Exit code of a run that a signal stopped where it can go on (sysexits' EX_TEMPFAIL: try again)."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are what schedulers are asked to send ahead of a time limit."""


class Stopped(BaseException):
    """A signal asked the run to stop; it can be resumed. Like KeyboardInterrupt it is no error to catch."""


@contextmanager
def on_stop(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` with the number of such a signal, instead of ending; as before afterwards."""
    before = {number: signal.signal(number, lambda n, _: handler(n)) for number in STOPPING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
