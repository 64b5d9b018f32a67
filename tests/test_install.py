"""The distribution as a user gets it: installed outside of the checkout, with a package of plug-ins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow
EXAMPLE = ROOT / "examples" / "my-method"
TINY = (
    "tracker=disabled", "hardware.threads=1", "model.nano.layers=1", "model.nano.hidden_size=32",
    "model.nano.heads=2", "model.finetune.steps=4", "method.steps=2", "eval.max_new_tokens=2", "eval.limit=4",
)  # fmt: skip


def call(*words: str | Path, cwd: Path) -> str:
    """Run a program without the variables that would lead it to the checkout."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "UNLEARN_CONFIG_PATH")}
    shown = subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment | {"COLUMNS": "200"}, text=True, capture_output=True
    )
    assert shown.returncode == 0, shown.stdout[-2000:] + shown.stderr[-3000:]
    return shown.stdout + shown.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `python -m build` makes: the source distribution, and from it the wheel."""
    out = tmp_path_factory.mktemp("dist")
    text = call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    warnings = [line for line in text.splitlines() if re.search(r"\bwarn", line, re.IGNORECASE)]
    assert [
        line for line in warnings if "byte-compiling is disabled" not in line and "log_warnings" not in line
    ] == []
    return out


@pytest.fixture(scope="module")
def programs(dist: Path) -> Path:
    """The programs of a fresh environment with the wheel and the example.

    What they depend on is that of this environment, without what leads to the checkout.
    """
    folder = dist / "environment"
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=dist)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet")
    alone = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    shutil.copytree(EXAMPLE, dist / "example")  # pip builds it where it lies
    call(*pip, *alone, wheel, dist / "example", cwd=dist)
    return folder / "bin"


def test_both_distributions_hold_the_options_templates_and_data(dist):
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        f"launch/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    for folder in ("unlearn", "eval", "launch"):
        files = (path for path in (ROOT / folder).rglob("*") if path.suffix in (".j2", ".bib", ".txt", ".py"))
        wanted |= {str(path.relative_to(ROOT)) for path in files}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= sources


def test_the_default_runs_to_its_report_in_an_empty_folder(programs, tmp_path):
    assert call(programs / "unlearn", "--version", cwd=tmp_path).splitlines()[0] == (
        f"unlearn-lab {version('unlearn-lab')}"
    )
    shown = call(programs / "unlearn", *TINY, "eval.compare=false", cwd=tmp_path)
    (report,) = tmp_path.glob("runs/npo-authors-*/report.html")
    assert f"report: {report.relative_to(tmp_path)}" in shown
    assert "tofu/model_utility" in shown
    python = "import launch; print(launch.__file__)"
    assert str(programs.parent) in call(programs / "python", "-c", python, cwd=tmp_path)


def test_a_package_of_plug_ins_is_found_and_swept(programs, tmp_path):
    listed = call(
        programs / "unlearn", "list", "objective", "rule", "source", "benchmark", "method", cwd=tmp_path
    )
    for name in ("hinge", "cautious", "alphabets", "first_token", "my-method"):
        assert re.search(rf"^  {name} ", listed, re.MULTILINE), name
    shown = call(
        programs / "unlearn",
        "-m",
        "experiment=my-study",
        "++seed=0",
        *TINY,
        "eval.compare=false",
        cwd=tmp_path,
    )
    for name in ("my-method", "npo"):
        assert len(list(tmp_path.glob(f"runs/{name}-alphabets-*/results.json"))) == 1
    table = shown.rpartition("sweep: ")[0]
    assert "first_token/forget/accuracy" in table
    call(programs / "unlearn", "compare", "runs", "--out", "comparison", cwd=tmp_path)
    assert "first_token/forget/accuracy" in (tmp_path / "comparison" / "compare.html").read_text()
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    refused = subprocess.run(
        ["unlearn", "method=my-method", "dataset=alphabets", "method.forget.flor=1", "dry_run=true"],
        cwd=tmp_path, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "objective hinge has no option flor (did you mean floor?)" in refused.stderr
