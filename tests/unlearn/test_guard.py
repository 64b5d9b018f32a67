"""How a process begins."""

from __future__ import annotations

import gc

from unlearn.guard import pause_collection, resume_collection


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
