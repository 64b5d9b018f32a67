"""`unlearn new`: what it writes runs as it is, and nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.commands.new import SCAFFOLDS
from tests.launch.commands import done, unlearn
from tests.paths import ROOT
from unlearn import plugins

pytestmark = pytest.mark.slow  # whole runs, and their files

TINY = (
    "tracker=disabled", "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2",
    "model.finetune.steps=2", "method.steps=2", "eval.limit=2", "eval.max_new_tokens=2", "hardware.threads=1",
    "eval.compare=false",
)  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Other tests in this process know nothing of these plug-ins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_OWN", {})
        yield


@pytest.mark.parametrize("what", SCAFFOLDS)
def test_the_files_are_named_tidy_and_fit(tmp_path, what):
    group = SCAFFOLDS[what].group
    shown = done(tmp_path, "new", what, f"own-{what}")
    assert shown.out.splitlines() == [
        f"written: own_{what}.py",
        f"written: configs/{group}/own-{what}.yaml",
        f"try it: unlearn {group}=own-{what} dry_run=true, then unlearn {group}=own-{what}",
    ]
    config = ["--config", str(ROOT / "pyproject.toml")]
    for check in (["check", "--extend-ignore", "I001"], ["format", "--check"]):
        subprocess.run(
            [sys.executable, "-m", "ruff", *check, *config, f"own_{what}.py"], cwd=tmp_path, check=True
        )
    assert f"own-{what}" in done(tmp_path, "list", group).out
    done(tmp_path, f"{group}=own-{what}", *TINY, "dry_run=true")


def test_they_run_together_as_they_are(tmp_path):
    for what in SCAFFOLDS:
        done(tmp_path, "new", what, f"my-{what}")
    done(tmp_path, "method=my-method", "eval=my-benchmark", "dataset=my-dataset", *TINY, "eval.compare=true")
    (run,) = (tmp_path / "runs").glob("my-method-my-dataset-*")
    models = (tmp_path / "runs").glob("finetune-my-dataset-*/model/model.safetensors")
    assert len({file.read_bytes() for file in models}) == 2  # a retain model is no target
    assert json.loads((run / "results.json").read_text())["my_benchmark/forget/probability"] > 0


def test_the_dataset_runs_with_the_default_evaluation(tmp_path):
    done(tmp_path, "new", "dataset", "villages")
    done(tmp_path, "dataset=villages", *TINY)
    (run,) = (tmp_path / "runs").glob("npo-villages-*")
    assert "tofu/forget/probability" in json.loads((run / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("method", "npo"), "method=npo exists (configs/method/npo.yaml); choose another name"),
        (("method", "nll"), "nll is the name of one of the project's objectives"),
        (("method", "json"), "Python has a module json"),
        (("dataset", "My Data"), "a name has small letters"),
        (("method", "class"), "no word of Python's"),
        (("metod", "mine"), "invalid choice: 'metod'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(tmp_path, arguments, says):
    shown = unlearn(tmp_path, "new", *arguments)
    assert shown.code == 2
    assert says in shown.err
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "mine.py").write_text("kept")
    shown = unlearn(tmp_path, "new", "method", "mine")
    assert (shown.code, shown.err) == (2, "mine.py: exists, and is not overwritten; choose another name\n")
    assert (tmp_path / "mine.py").read_text() == "kept"
    assert not (tmp_path / "configs").exists()
    done(tmp_path, "new", "benchmark", "other")
    shown = unlearn(tmp_path, "new", "benchmark", "other")
    assert "eval=other exists (configs/eval/other.yaml)" in shown.err
