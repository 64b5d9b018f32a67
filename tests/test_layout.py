"""The three packages import in one direction, and each large library is imported in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

FLOORS = ("unlearn", "eval", "launch")
"""Each may import itself and those before it."""


def imports() -> Iterator[tuple[str, str]]:
    """Every (file, imported module) of the packages."""
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    yield str(path.relative_to(ROOT)), node.module
                elif isinstance(node, ast.Import):
                    yield from ((str(path.relative_to(ROOT)), each.name) for each in node.names)


IMPORTS = list(imports())


def test_packages_import_only_themselves_and_those_below():
    assert len(IMPORTS) > 1000
    upward = [
        f"{file} imports {module}"
        for file, module in IMPORTS
        if (top := module.split(".")[0]) in FLOORS and FLOORS.index(top) > FLOORS.index(file.split("/")[0])
    ]
    assert upward == []


def test_no_benchmark_and_no_variant_is_imported_outside_its_own_files():
    """`eval/rescore.py` is the name of a command of TOFU's."""
    others = [
        f"{file} imports {module}"
        for file, module in IMPORTS
        if (plug_in := re.match(r"eval\.benchmarks(\.\w+)?|eval\.variants\.(?!_)\w+", module))
        and not file.startswith(plug_in[0].replace(".", "/"))
        and file != "eval/rescore.py"
    ]
    assert others == []


def test_of_eval_only_relearning_trains():
    users = {file for file, module in IMPORTS if file.startswith("eval/") and "unlearn.training" in module}
    assert users == {"eval/variants/relearning.py"}


@pytest.mark.parametrize(
    ("library", "folder"), [("deepspeed", "unlearn/training/engine.py"), ("wandb", "launch/tracking/")]
)
def test_a_large_library_is_imported_in_one_place(library, folder):
    users = {file for file, module in IMPORTS if module.split(".")[0] == library}
    assert users
    assert {file for file in users if not file.startswith(folder)} <= {
        "launch/report/compare/wandb_offline.py"  # reads the format of its files, not the service
    }
