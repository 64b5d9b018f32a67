"""Cache files that several runs need and one of them computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from unlearn.distributed import World

log = logging.getLogger(__name__)
T = TypeVar("T")

_LOCK_TIMEOUT = 30.0  # seconds between two attempts to lock, below the timeout of a collective


def compute_once(file: Path, world: World, read: Callable[[], T | None], make: Callable[[], T]) -> T:
    """Read a value from a file; if it is missing, compute it with `make`, which also writes the file.

    Of several runs the first computes the value, and the others wait for it. The lock is the operating
    system's: it ends with the process that holds it. A collective.
    """
    if _everywhere(world, value := read()):
        assert value is not None
        return value
    with _locked(file, world):
        if _everywhere(world, value := read()):
            assert value is not None
            return value
        return make()


@contextmanager
def _locked(file: Path, world: World) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        while not world.on_main(lambda: _acquire(lock, file)):
            pass
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, file: Path) -> bool:
    try:
        lock.acquire(timeout=_LOCK_TIMEOUT)
    except Timeout:
        log.info("%s is being made by another run: waiting", file)
        return False
    return True


def _everywhere(world: World, value: object) -> bool:
    """Return whether every process has read the value; if one has not, all compute it."""
    return all(world.gather([value is not None]))
