"""The front page is true: its tree is that of the repository."""

from __future__ import annotations

import re

from tests.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_is_true():
    tree = re.search(r"## Where things are\n\n```\n(.*?)```", README, re.S)
    assert tree is not None
    named = {line.split("/")[0] for line in tree.group(1).splitlines()}
    assert named == {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir()
        and path.name in named | {"configs", "unlearn", "eval", "launch", "tests", "benches", "docs"}
    }
