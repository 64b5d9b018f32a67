"""The documents are true: commands, options and metrics that they name, and links of the site."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from eval.metric_catalog import can_be, declarations, split_variant
from launch.commands import SUBCOMMANDS
from launch.commands.keys import keys_of
from launch.compose import checked, compose_run, force_overrides
from launch.config_groups import groups
from launch.report import docs
from launch.report.markdown import key_anchor
from launch.report.site_hooks import rewritten
from launch.validate import check
from tests import documents
from tests.paths import ROOT
from unlearn.config import DatasetConfig, RunConfig
from unlearn.data.sources import load_sets

pytestmark = pytest.mark.slow  # a hundred commands
_STANDS_FOR = re.compile(r"\b(DIR|FILE|ID|LOG|RETAIN_LOG|MODEL|DATA)\b")
"""Something of the reader's: a command with it is composed, but not checked."""
_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd", "--config-name", "-cn",
    "--experimental-rerun", "--shell-completion", "-sc",
}  # fmt: skip
"""Flags of Hydra that are followed by a value."""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example data of the documents, as the working directory."""
    for file in (ROOT / "docs" / "data").iterdir():
        shutil.copy(file, tmp_path)
    for name in ("a, b;$(c).jsonl", "other.jsonl"):  # of docs/sweeps.md
        shutil.copy(tmp_path / "forget.jsonl", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", documents.commands("unlearn"), ids=str)
def test_every_command_composes(command, beside):
    arguments = documents.words(command)[1:]
    if arguments and arguments[0] in SUBCOMMANDS:
        if arguments[1:]:  # else the text means the subcommand itself
            import_module(SUBCOMMANDS[arguments[0]].module).parser().parse_args(arguments[1:])
        return
    given = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not word.startswith("-") and before not in _WITH_VALUE
    ]
    overrides = force_overrides(given)
    config = checked(compose_run(overrides), overrides)
    if not _STANDS_FOR.search(command) and config.model.kind != "gguf":  # which is in a package of its own
        elsewhere = config.hardware.device == "cuda" or "hydra/launcher=slurm" in command
        check(config.model_copy(update={"dry_run": config.dry_run or elsewhere}))


@pytest.mark.parametrize("command", documents.commands("python -m"), ids=str)
def test_every_module_that_is_started_is_there(command):
    assert find_spec(command.split()[2]) is not None


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.PAGE.name)
def test_generated_pages_are_current(page):
    written = page.PAGE.read_text(encoding="utf-8")
    assert written.splitlines() == page.page().splitlines(), f"`make docs` writes {page.PAGE.name} anew"


def test_options_that_the_documents_name_are_there():
    known = groups()
    named = {
        (page, group, option)
        for page, span in documents.inline_code()
        for group, options in re.findall(rf"(?<![\w.])({'|'.join(known)})=([\w.,-]+)", span)
        for option in options.split(",")
        if page != "CONTRIBUTING.md"  # which adds options of its own
    }
    assert len(named) > 70
    assert {each for each in named if each[2] not in {*known[each[1]], "NAME", "null"}} == set()


def test_keys_that_the_documents_name_are_there():
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    anchors = set(re.findall(r'<a id="([^"]+)"', text))
    sections = "|".join(name for name in RunConfig.model_fields if name not in ("seed", "root", "dry_run"))
    named = {
        (page, re.sub(r"^(model\.finetune|method\.reinforced|probe\.method)\.", "method.", key))
        for page, span in documents.inline_code()
        for key in re.findall(rf"^((?:{sections})\.[\w.]+\w)(?:=|$)", span)
    }
    assert len(named) > 100
    modules = {each for each in named if (ROOT / f"{each[1].replace('.', '/')}.py").is_file()}
    assert {each for each in named - modules if key_anchor(each[1]) not in anchors} == set()


def test_each_key_has_one_anchor_and_a_description():
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    anchors = re.findall(r'<a id="([^"]+)"', text)
    assert len(set(anchors)) == len(anchors)
    keys = list(keys_of(RunConfig))
    assert {key_anchor(key.name) for key in keys} <= set(anchors)
    assert [key.name for key in keys if not key.text] == []


def test_metrics_that_the_documents_name_are_declared():
    known = [key for metrics in declarations() for key in metrics]
    benchmarks = "|".join({key.partition("/")[0] for key in known})
    named = {
        (page, split_variant(key)[1])
        for page, span in documents.inline_code()
        for key in re.findall(rf"^((?:{benchmarks})/[\w/]+\w)$", span)
        if page != "metrics.md" and not key.endswith("/generations")  # tables of W&B
    }
    assert len(named) > 50
    assert {each for each in named if not can_be(each[1], known)} == set()


def test_targets_of_make_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = {
        target
        for page in documents.PAGES
        for target in re.findall(r"(?:`|^ *)make ([a-z0-9-]+)", documents.text(page), re.MULTILINE)
    }
    assert len(named) > 5
    assert named <= targets


def test_the_data_of_the_first_page_are_those_of_its_files():
    page = ROOT / "docs" / "from-zero.md"
    for name, whole in (("forget", True), ("retain", False)):
        (shown,) = documents.fences(page, f"json {name}.jsonl")
        rows = (ROOT / "docs" / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert rows == shown if whole else rows.startswith(shown)


def test_the_row_with_all_columns_is_read(tmp_path):
    (row,) = documents.fences(ROOT / "docs" / "from-zero.md", "json all.jsonl")
    file = tmp_path / "all.jsonl"
    file.write_text(row, encoding="utf-8")
    config = DatasetConfig(name="custom", source="custom", forget=str(file), retain=str(file))
    (read,) = load_sets(config, {"forget"})["forget"]
    assert [read.question, read.answer, read.template] == ["Who keeps it?", "Ada does.", "I cannot say."]
    assert read.perturbed_answers == ("Ben does.", "Eve does.")
    assert (read.paraphrased_question, read.paraphrased_answer) == (
        "Who is its keeper?",
        "Its keeper is Ada.",
    )


def test_the_site_is_built_without_a_warning(tmp_path):
    """Every page is in the navigation, every link leads somewhere, and nothing comes from elsewhere."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?:', html) == []


def test_links_of_the_repository_become_links_of_the_site():
    text = "[a](docs/x.md#y) [b](CONTRIBUTING.md) [c](tests/z.py) [d](https://e.org) [f](#g)"
    assert rewritten(text, at_root=True) == "[a](x.md#y) [b](contributing.md) c [d](https://e.org) [f](#g)"
    assert rewritten("[a](x.md) [b](../CONTRIBUTING.md) [c](../tests/z.py)", at_root=False) == (
        "[a](x.md) [b](contributing.md) c"
    )


def test_files_of_the_habits_are_yaml_with_the_commands_of_ci():
    hidden = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "mkdocs.yml"]
    assert len(hidden) > 5
    for file in hidden:
        assert yaml.compose(file.read_text(encoding="utf-8")) is not None, file
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert [step for step in steps if step != "make setup"] == re.findall(r"^make .*$", script, re.MULTILINE)


def test_the_version_is_that_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version("unlearn-lab")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] in (version("unlearn-lab"), "Unreleased")
