"""What is said of configuration keys, and where."""

from __future__ import annotations

import tomllib

import pytest

from launch.report.documentation import SITE, about, link
from tests.paths import ROOT


def test_a_key_has_a_place_on_the_site():
    assert link("method.forget.beta") == f"{SITE}configuration/#method-forget-beta"
    assert link("versions.torch") == ""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Documentation"] == SITE


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("method.lr", "peak learning rate"),
        ("method.forget.beta", "objective and its hyper-parameters"),
        ("method.rule.mix", "The rule that combines the terms' gradients into one update."),
        ("model.nano.layers", "number of blocks"),
        ("tracker.mode", "auto: online with a key, else offline"),
        ("dataset.options.authors", "further options of the source"),
        ("versions.torch", ""),
    ],
)  # fmt: skip
def test_a_key_has_its_own_description_or_that_of_its_section(key, text):
    assert about(key) == text
