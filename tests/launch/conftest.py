"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.launch.children import Nursery


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Commands in processes of their own that begin at once."""
    from tests.launch.children import (
        Nursery,
    )  # imports Submitit, which must not come before pytest's own output

    made = Nursery(tmp_path_factory.mktemp("children"))
    try:
        yield made
    finally:
        made.close()
