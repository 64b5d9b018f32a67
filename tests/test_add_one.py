"""One plug-in of each kind: the files of CONTRIBUTING.md, and no others, in an empty folder."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.report.compare.command import main as compare
from tests.launch.commands import done, unlearn
from tests.paths import ROOT
from unlearn import plugins

FILES = dict(re.findall(r"```\w+ (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))
RUN = (
    "method=bounded", "dataset=towns", "eval=[weakest,noisy]", "dataset.options.towns=8", "method.steps=2",
    "method.batch=4", "model.nano.layers=1", "model.nano.hidden_size=32", "model.nano.heads=2",
    "model.finetune.epochs=1", "eval.compare=false", "hardware.threads=1", "probe=confidence",
    "tracker=lines",
)  # fmt: skip
SHOWN = ("weakest/forget/probability", "weakest/retain/probability", "noisy/0.02/weakest/forget/probability")
REFUSED = {
    "method.forget.objective=boundedd": "objective=boundedd: no such objective (did you mean bounded?)",
    "method.forget.objective=towns": "objective=towns: cannot be imported (module 'towns' has no",
    "method.forget.objective=none.such": "objective=none.such: cannot be imported (No module named 'none')",
    "method.forget.florr=1": "florr=1: objective bounded has no option florr (did you mean floor?)",
    "method.forget.floor=low": "method.forget.floor='low': input should be a valid number",
    "method.forget.weighting.abov=1": "weighting likely has no option abov (did you mean above?)",
    "method.rule.rates=1": "rates=1: rule growing has no option rates (did you mean rate?)",
    "dataset.source=weakest": "weakest has no load, available, check, identity, which a source needs",
    "dataset.options.town=1": "town=1: source towns has no option town (did you mean towns?)",
    "eval.benchmarks.weaker={}": "weaker: no such benchmark (did you mean weakest?)",
    "eval.variants.noisy.sigm=1": "variant noisy has no option sigm (did you mean sigma?)",
    "probe.name=confidense": "probe.name=confidense: no such probe (did you mean confidence?)",
    "probe.example=1": "probe.example=1: probe confidence has no option example (did you mean examples?)",
    "tracker.name=bounded": "tracker.name=bounded: cannot be imported (module 'bounded' has no attribute",
    "tracker.fil=x": "tracker.fil=x: tracker lines has no option fil (did you mean file?)",
    "eval=[weakest,nois]": "(did you mean noisy?)",
}


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Other tests in this process know nothing of these plug-ins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_OWN", {})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_mistake_is_named(folder: Path, wrong: str) -> None:
    shown = unlearn(folder, *RUN, wrong, "dry_run=true")
    assert shown.code == 2
    assert REFUSED[wrong] in shown.err


def test_an_option_with_the_name_of_one_of_the_projects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "configs" / "method" / "npo.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("name: npo\n")
    shown = unlearn(tmp_path, "method=npo", "dry_run=true")
    assert shown.code == 2
    assert f"method=npo: {file} has the name of " in shown.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "instead", "words"),
    [
        ("", "", ""),
        (
            'sets["retain"] if cfg.full == "retain" else rows',
            "rows",
            "would be trained on all of the forget set",
        ),
        (
            '{**Options(**cfg.options).model_dump(), "full": cfg.full}',
            "{}",
            "`identity` of the source must have",
        ),
    ],
)
def test_a_retain_model_is_trained_on_other_data_than_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, instead: str, words: str
) -> None:
    monkeypatch.setattr(plugins, "_OWN", {})
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not (Path(each) / "towns.py").is_file()])
    monkeypatch.delitem(sys.modules, "towns", raising=False)
    for name in ("towns.py", "configs/dataset/towns.yaml", "weakest.py", "configs/eval/weakest.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(FILES[name].replace(part, instead) if part else FILES[name])
    shown = unlearn(tmp_path, "dataset=towns", "eval=weakest", "dry_run=true")
    monkeypatch.delitem(sys.modules, "towns", raising=False)
    assert shown.code == (2 if words else 0), shown.err
    assert words in shown.err


@pytest.mark.slow
def test_every_plug_in_is_used_and_shown(folder: Path) -> None:
    shown = done(folder, *RUN)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        compare(["runs", "--out", "comparison"])
    (run,) = (folder / "runs").glob("bounded-towns-*")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["rule/retain"] for row in rows if "rule/retain" in row][-1] > 1
    assert [row["step"] for row in rows if row.get("confidence/forget", 0) > 0] == [0, 1, 2]
    results = json.loads((run / "results.json").read_text())
    with (run / "numbers.csv").open(newline="") as file:
        lines = {(step, key): value for _, step, key, value in csv.reader(file)}
    assert {step for step, key in lines if key in ("loss", "confidence/forget")} == {"0", "1", "2"}
    assert float(lines["end", SHOWN[0]]) == results[SHOWN[0]]
    places = [shown.out, (run / "report.html").read_text(), (folder / "comparison/compare.html").read_text()]
    for key in SHOWN:
        assert results[key] > 0
        assert all(key in place for place in places), key
    assert "↓" in shown.out.partition(SHOWN[0])[2].partition("\n")[0]  # its direction is known
    done(folder, *RUN, "method=muted", "eval=weakest", "probe=none")
    (muted,) = (folder / "runs").glob("muted-towns-*")
    facts = json.loads((muted / "model" / "interventions.json").read_text())
    assert facts["interventions"] == [{"name": "muted", "token": 5, "by": 10.0}]
    assert "weakest/forget/probability" in json.loads((muted / "results.json").read_text())
