"""Files that several runs need and one of them computes."""

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

_PATIENCE = 30.0  # seconds between two attempts to lock, below the timeout of a collective


def compute_once(file: Path, world: World, read: Callable[[], T | None], make: Callable[[], T]) -> T:
    """Read a value from a file; where it is not there, compute it with `make`, which also writes the file.

    Of several runs the first computes it, and the others wait for it. The lock is the operating
    system's: it dies with its holder. A collective.
    """
    if _everywhere(world, found := read()):
        assert found is not None
        return found
    with _turn(file, world):
        if _everywhere(world, found := read()):
            assert found is not None
            return found
        return make()


@contextmanager
def _turn(file: Path, world: World) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        while not world.on_main(lambda: _taken(lock, file)):
            pass
        yield
    finally:
        lock.release()


def _taken(lock: FileLock, file: Path) -> bool:
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        log.info("%s is being made by another run: waiting", file)
        return False
    return True


def _everywhere(world: World, found: object) -> bool:
    """Return whether every process has it: where one cannot read it, all compute."""
    return all(world.gather([found is not None]))
