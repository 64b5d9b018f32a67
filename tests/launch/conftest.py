"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch.children import Nursery


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Commands in processes of their own that begin at once."""
    made = Nursery(tmp_path_factory.mktemp("children"))
    try:
        yield made
    finally:
        made.close()
