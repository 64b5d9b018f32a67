"""The three packages import in one direction, and each large library is imported in one place."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.paths import ROOT

FLOORS = ("unlearn", "eval", "launch")
"""Each may import itself and those before it."""


@cache
def imports() -> list[tuple[str, str]]:
    """Return every (file, imported module) of the packages."""
    pairs = []
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    pairs.append((str(path.relative_to(ROOT)), node.module))
                elif isinstance(node, ast.Import):
                    pairs += [(str(path.relative_to(ROOT)), each.name) for each in node.names]
    return pairs


def test_packages_import_only_themselves_and_those_below():
    assert len(imports()) > 1000
    upward = [
        f"{file} imports {module}"
        for file, module in imports()
        if (top := module.split(".")[0]) in FLOORS and FLOORS.index(top) > FLOORS.index(file.split("/")[0])
    ]
    assert upward == []


def test_no_benchmark_and_no_variant_is_imported_outside_its_own_files():
    others = [
        f"{file} imports {module}"
        for file, module in imports()
        if (plug_in := re.match(r"eval\.benchmarks(\.\w+)?|eval\.variants\.(?!_)\w+", module))
        and not file.startswith(plug_in[0].replace(".", "/"))
    ]
    assert others == []


def test_of_eval_only_relearning_trains():
    users = {file for file, module in imports() if file.startswith("eval/") and "unlearn.training" in module}
    assert users == {"eval/variants/relearning.py"}


@pytest.mark.parametrize(
    ("library", "folder"),
    [
        ("deepspeed", "unlearn/training/engine"),
        ("wandb", "launch/tracking/"),
        ("tensorboard", "launch/tracking/trackers/tensorboard.py"),
        ("mlflow", "launch/tracking/trackers/mlflow.py"),
    ],
)
def test_a_large_library_is_imported_in_one_place(library, folder):
    users = {file for file, module in imports() if module.split(".")[0] == library}
    assert users
    assert {file for file in users if not file.startswith(folder)} <= {
        "launch/report/compare/wandb_offline.py"  # reads the format of its files, not the service
    }
