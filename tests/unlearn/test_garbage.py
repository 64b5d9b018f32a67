"""When Python looks for garbage, and that freed memory is given back."""

from __future__ import annotations

import ctypes
import gc
import weakref

import psutil
import pytest

from unlearn.garbage import free_memory, pause_collection, resume_collection


def test_garbage_is_collected_again_once_and_what_was_imported_is_left_out() -> None:
    before = gc.get_freeze_count()
    try:
        pause_collection()
        assert not gc.isenabled()
        resume_collection()
        assert gc.isenabled()
        frozen = gc.get_freeze_count()
        assert frozen > before
        later: list[list[int]] = [[] for _ in range(1000)]
        resume_collection()  # of the next run in this process
        assert gc.get_freeze_count() <= frozen
        assert len(later) == 1000
    finally:
        gc.enable()


class _Cycle:
    def __init__(self) -> None:
        self.own = self


def test_cycles_are_freed_at_once() -> None:
    gc.disable()
    try:
        gone = weakref.ref(_Cycle())
        assert gone() is not None
        free_memory()
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_memory_between_pieces_in_use_goes_back_to_the_system() -> None:
    size = 1 << 16  # below the least size that glibc maps on its own
    held = [bytes([1]) * size for _ in range(2048)]
    kept = held[::16]  # so that the freed pieces are not at the end of the heap
    full = psutil.Process().memory_info().rss
    del held
    free_memory()
    assert full - psutil.Process().memory_info().rss > 0.5 * size * 2048
    assert len(kept) == 128
