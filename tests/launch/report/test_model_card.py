"""The model card of a run's models: what the hub reads, what a reader sees, and nothing private."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from launch.compose import checked, compose_run
from launch.report.model_card import write_cards
from launch.run.config_file import write_config
from launch.run.plan import make_plan
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.slow  # many plans

RESULTS = {"tofu/forget_quality": 0.25, "tofu/model_utility": 0.5, "run/seconds": 12.3, "train/loss": 1.5}
TOKEN = "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"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home-of-nobody-else"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return folder


def planned(home: Path, *overrides: str) -> RunDir:
    """The directory of a planned run, with the folders of its models."""
    command = [f"++root={home}/runs", *overrides]
    plan = make_plan(checked(compose_run(command)))
    rundir = plan.main.rundir
    write_config(plan.main, command=[*command, f"++tracker.tags=[{TOKEN}]"])
    for name, value in (("target", 0.0), ("retain model", 1.0)):
        if (folder := plan.evaluation(name)) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            RunDir(folder).write_results({"tofu/forget_quality": value, "tofu/model_utility": 0.625})
    for folder in (rundir.model, rundir.models / "step-4"):
        folder.mkdir(parents=True)
    return rundir


def card(rundir: RunDir, results: dict[str, Any] = RESULTS, folder: str = "model") -> ModelCard:
    write_cards(rundir, results)
    return ModelCard.load(rundir.path / folder / "README.md")


def test_what_the_hub_reads(home: Path) -> None:
    rundir = planned(home, "model=llama-3.2-1b-instruct", "dataset=tofu", "++model.lora.r=8")
    rundir.adapter.mkdir()
    known = card(rundir).data.to_dict()
    (shown,) = known.pop("model-index")
    (about,) = shown["results"]
    assert {each["type"]: each["value"] for each in about["metrics"]} == {
        "tofu/forget_quality": 0.25, "tofu/model_utility": 0.5,
    }  # fmt: skip
    assert known == {
        "base_model": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        "base_model_relation": "finetune",
        "datasets": ["locuslab/TOFU"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning", "npo", "tofu", "unlearn-lab"],
    }
    adapter = ModelCard.load(rundir.adapter / "README.md")
    own = {"library_name": "peft", "base_model_relation": "adapter"}
    assert {k: v for k, v in adapter.data.to_dict().items() if k != "model-index"} == known | own
    assert "PeftModel.from_pretrained" in adapter.text
    assert re.search(r"peft \d", adapter.text)


def test_what_a_reader_sees(home: Path) -> None:
    text = card(planned(home, "++method.forget.beta=0.3")).text
    for row in (
        "| metric | target | retain model | this model | better |",
        "| `tofu/forget_quality` | 0.0000 | 1.0000 | 0.2500 | ↑ |",
        "| `tofu/model_utility` | 0.6250 | 0.6250 | 0.5000 | ↑ |",
    ):
        assert row in text
    assert "run/seconds" not in text
    assert "https://arxiv.org/abs/2404.05868" in text
    values = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])  # type: ignore[index]
    assert values["method"]["forget"] == {"objective": "npo", "beta": 0.3}
    assert values["method"]["weight_decay"] == 0.01
    assert "method.forget.beta=0.3" in text
    assert re.search(r"unlearn-lab \d.*torch \d.*transformers \d.*deepspeed \d", text)
    assert "## Licence" in text


def test_what_was_cut_short_and_what_is_not_in_it_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "card_objective.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n"
        'def card_objective(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:\n    return logp\n'
    )
    monkeypatch.chdir(home)
    short = ("++eval.limit=2", "++eval.max_new_tokens=3")
    text = card(planned(home, "method=grad_ascent", "++method.forget.objective=card_objective", *short)).text
    assert "Measured on 2 examples of each set (eval.limit), with answers of at most 3 tokens" in text
    assert "Its parts `card_objective` are code of their own" in text
    assert "| forget set | `forget10` |" in text
    assert "Measured on" not in card(planned(home, "++seed=7")).text


def test_nothing_private_is_in_it(home: Path) -> None:
    for name in ("forget", "retain"):
        (home / f"{name}.jsonl").write_text('{"question": "Who?", "answer": "Ann."}\n')
    data = [f"++dataset.{name}={home}/{name}.jsonl" for name in ("forget", "retain")]
    rundir = planned(home, "dataset=custom", "++dataset.path=.", *data)
    text = str(card(rundir))
    for secret in (TOKEN, str(home), home.name):
        assert secret not in text
        assert secret not in rundir.config.read_text()
    assert "[HF_TOKEN]" in text
    assert "dataset.forget=~/forget.jsonl" in text
    assert "datasets" not in card(rundir).data.to_dict()


def test_it_is_the_same_however_often_it_is_written(home: Path) -> None:
    rundir = planned(home)
    write_cards(rundir, RESULTS)
    before = {file: file.read_bytes() for file in rundir.path.rglob("README.md")}
    assert len(before) == 2
    write_cards(rundir, {**RESULTS, "run/seconds": 99.0})
    assert {file: file.read_bytes() for file in rundir.path.rglob("README.md")} == before


def test_a_model_of_a_step_has_the_numbers_of_that_step(home: Path) -> None:
    rundir = planned(home)
    rundir.append_history({"step": 4, "loss": 1.0, "tofu/model_utility": 0.125})
    text = card(rundir, folder="models/step-4").text
    assert "step 4" in text
    assert "| `tofu/model_utility` | 0.6250 | 0.6250 | 0.1250 | ↑ |" in text
    assert "forget_quality" not in text


def test_licence_and_base_are_taken_from_the_model_that_training_starts_from(
    home: Path, saved: Path, tmp_path: Path
) -> None:
    model = tmp_path / "start"
    model.mkdir()
    for file in saved.iterdir():
        (model / file.name).symlink_to(file)
    start = ("model=local", f"++model.path={model}", "++eval.compare=false")
    notes = model / "README.md"
    notes.write_text("---\nlicense: mit\nbase_model: lab/base\n---\n# A model\n")
    read = card(planned(home, *start))
    assert (read.data["license"], read.data["base_model"]) == ("mit", "lab/base")
    assert "That of the base model: mit." in read.text
    notes.write_text("---\nlicense: [\n---\n")
    assert "license" not in card(planned(home, *start, "++seed=1")).data.to_dict()


def test_a_model_with_an_edit_says_what_loads_it(home: Path) -> None:
    rundir = planned(home)
    assert "interventions.json" not in card(rundir).text
    (rundir.model / "interventions.json").write_text("{}")
    assert "(interventions.json): load it with Unlearn Lab" in card(rundir).text


def test_a_run_without_a_model_has_no_card(home: Path) -> None:
    plan = make_plan(checked(compose_run([f"++root={home}/runs", "method=none"])))
    plan.main.directory.mkdir(parents=True)
    write_cards(plan.main.rundir, RESULTS)
    assert list(plan.main.directory.iterdir()) == []
