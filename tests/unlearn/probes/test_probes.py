"""What every probe gets from the run that it measures."""

from __future__ import annotations

import pytest

from launch.compose import checked, compose_run
from unlearn.probes import watched_sets
from unlearn.probes.geffect import Geffect


def test_sets_that_a_probe_needs_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    config = checked(compose_run(["probe=geffect"]))
    assert watched_sets(config) == {"forget", "retain"}
    monkeypatch.setattr(Geffect, "sets", ("holdout", "validation"))  # the dataset has no such set as the last
    assert watched_sets(config) == {"forget", "retain", "holdout"}
    assert watched_sets(checked(compose_run([]))) == set()
