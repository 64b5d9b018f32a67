"""Whole runs of the command as a user starts it: real Hydra, DeepSpeed, W&B (offline), files."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.report.results_table import format_value
from tests.launch import commands
from tests.launch.commands import Shown, ended, started
from tests.launch.tracking.wandb_files import read_run
from tests.paths import SHARED

pytestmark = pytest.mark.slow

# Ten authors, two epochs, half the width: a target that knows little, made in seconds. One thread, so that
# sums have one order and equal means equal.
SMALL = [
    "dataset.options.authors=10",
    "model.nano.hidden_size=64",
    "model.finetune.epochs=2",
    "method.epochs=4",
    "method.batch=4",
    "eval.max_new_tokens=8",
    "eval.limit=10",
    "hardware.threads=1",
    "checkpoint.every_steps=2",
    "tracker=disabled",
]
SMALL_BUT_SHAPE = [key for key in SMALL if not key.startswith("model.nano.")]  # for a model that is there


def unlearn(cwd: Path, *arguments: str, small: bool = True) -> Shown:
    return commands.unlearn(cwd, *(SMALL if small else []), *arguments)


def main_run(cwd: Path, method: str = "npo") -> Path:
    (found,) = cwd.glob(f"runs/{method}-*")
    return found


def results(run: Path) -> dict[str, Any]:
    """Return the numbers of a run that must repeat: all except time and memory."""
    values = json.loads((run / "results.json").read_text())
    varying = ("run/seconds", "train/memory_gib")
    return {k: math.nan if v is None else v for k, v in values.items() if k not in varying}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shown]:
    """Make a small default run in its own process, in a folder with a space in its name."""
    cwd = tmp_path_factory.mktemp("a run") / "with space"
    cwd.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{compilers(cwd)}{os.pathsep}{os.environ['PATH']}")
        shown = ended(started(cwd, *SMALL, "eval.every_steps=6", "tracker=offline"))
    assert shown.code == 0, shown.err[-3000:]
    return cwd, shown


def compilers(cwd: Path) -> Path:
    """Compilers that do nothing but note that they were started."""
    folder = cwd.with_name("compilers")
    folder.mkdir()
    for name in ("cc", "gcc", "c++", "g++", "clang", "nvcc"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> '{folder}/started'\nexit 1\n")
        (folder / name).chmod(0o755)
    return folder


def test_no_compiler_is_started(done):
    assert not (done[0].with_name("compilers") / "started").exists()


def test_the_run_leaves_what_the_design_promises(done):
    cwd, process = done
    run = main_run(cwd)
    for name in (
        "config.yaml",
        "history.jsonl",
        "results.json",
        "report.html",
        "run.log",
        "model",
        "eval/tofu",
    ):
        assert (run / name).exists(), name
    assert not (run / "checkpoints").exists()  # the model is there; the resumable state has served
    for word in ("target", "retain model", "unlearned", "tofu/forget_quality", "report.html"):
        assert word in process.out
    found = results(run)
    for key in (
        "tofu/forget_quality",
        "tofu/model_utility",
        "tofu/forget/probability",
        "tofu/retain/truth_ratio",
    ):
        assert isinstance(found[key], float)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert {"loss/forget", "loss/retain", "lr", "grad_norm", "tokens", "tokens_per_s", "memory_gib"} <= set(
        steps[0]
    )
    # evaluated on the way, after steps 6, 12, …
    assert next(row["step"] for row in rows if "tofu/model_utility" in row) == 6
    examples = pq.read_table(run / "eval" / "tofu" / "examples.parquet").to_pylist()
    assert {row["set"] for row in examples} == {"forget", "retain", "real_authors", "world_facts", "holdout"}


def test_the_model_is_plain_hugging_face(done):
    run = main_run(done[0])
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.chat_template
    assert model.num_parameters() == 1536 * 64 + 4 * (4 * 64**2 + 3 * 64 * 176 + 2 * 64) + 64
    assert not list((run / "model").glob("*.bin"))


def test_wandb_has_it_all_offline(done):
    run = main_run(done[0])
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    record = read_run(file)
    assert record["run"].display_name.startswith("npo authors forget10 nano")
    assert record["run"].job_type == "unlearn"
    assert {"nano", "authors", "npo"} <= set(record["run"].tags)
    assert record["config"]["method"]["forget"] == {"objective": "npo", "beta": 0.1}
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    logged = {row["step"]: row for row in record["history"] if "loss" in row}
    for row in rows:
        if "loss" in row:
            assert logged[row["step"]]["loss"] == pytest.approx(row["loss"], rel=1e-12)
    assert record["summary"]["tofu/model_utility"] == pytest.approx(results(run)["tofu/model_utility"])
    tables = list(run.glob("wandb/offline-run-*/files/media/table/**/*.json"))
    generations = [json.loads(t.read_text()) for t in tables]
    assert any("generation" in t["columns"] and t["data"] for t in generations)


def test_started_again_it_returns_at_once(done):
    cwd, first = done
    before = {path: path.stat().st_mtime_ns for path in main_run(cwd).rglob("*.safetensors")}
    again = unlearn(cwd, "eval.every_steps=6")
    assert again.code == 0
    assert again.out.count("(complete)") == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = [line for line in first.out.splitlines() if line.startswith("tofu/")]
    assert table == [line for line in again.out.splitlines() if line.startswith("tofu/")]
    assert "was made with" not in again.err


def test_a_complete_run_of_another_precision_says_so(done, caplog):
    cwd, _ = done
    stored = main_run(cwd) / "config.yaml"
    written = stored.read_text()
    stored.write_text(written.replace("dtype: fp32", "dtype: bf16"))  # as on a processor that has bf16
    try:
        again = unlearn(cwd, "eval.every_steps=6")
    finally:
        stored.write_text(written)
    assert again.code == 0
    assert f"{main_run(cwd).name} is complete, and was made with hardware.dtype=bf16" in caplog.text


def test_another_way_of_measuring_does_not_train_again(done):
    cwd, _ = done
    trained = weights(main_run(cwd))
    stamp = (main_run(cwd) / "model" / "model.safetensors").stat().st_mtime_ns
    process = unlearn(cwd, "eval.limit=5")
    assert process.code == 0, process.err[-2000:]
    assert (main_run(cwd) / "model" / "model.safetensors").stat().st_mtime_ns == stamp
    assert all(torch.equal(trained[name], t) for name, t in weights(main_run(cwd)).items())
    scored = pq.read_table(main_run(cwd) / "eval" / "tofu" / "examples.parquet")
    assert scored["set"].to_pylist().count("forget") == 5


def test_evaluating_on_the_way_changes_nothing(done, tmp_path):
    cwd, _ = done
    process = unlearn(tmp_path, f"root={cwd}/runs", f"hydra.run.dir={tmp_path}/plain", "eval.compare=false")
    assert process.code == 0, process.err[-3000:]
    evaluated = weights(main_run(cwd))  # by a run that evaluated on its way
    assert all(torch.equal(evaluated[name], t) for name, t in weights(tmp_path / "plain").items())


def test_adapters_in_bf16_are_measured_as_they_are_saved(done, tmp_path):
    given = (
        f"root={done[0]}/runs", f"hydra.run.dir={tmp_path}/run", "hardware.dtype=bf16", "model.lora.r=4",
        "method.steps=3", "method.lr=1e-3", "eval.limit=5", "eval.compare=false",
    )  # fmt: skip
    assert unlearn(tmp_path, *given).code == 0
    first = results(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "eval")
    assert unlearn(tmp_path, *given).code == 0
    assert results(tmp_path / "run") == pytest.approx(first, nan_ok=True, rel=1e-12)


@pytest.fixture(scope="module")
def adapted(done: tuple[Path, Shown], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that trains adapters."""
    folder = tmp_path_factory.mktemp("lora")
    process = unlearn(
        folder, f"root={done[0]}/runs", f"hydra.run.dir={folder}/run", "model.lora.r=4", "eval.limit=5"
    )
    assert process.code == 0, process.err[-3000:]
    return folder / "run"


def test_adapters_are_trained_alone_and_merged(done, adapted):
    cwd, _ = done
    (target,) = cwd.glob("runs/finetune-authors-full-*")
    before, after = weights(target), weights(adapted)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_the_models_of_a_run_have_cards(done, adapted):
    cwd, _ = done
    command = shlex.join(["unlearn", *SMALL, f"root={cwd}/runs", "model.lora.r=4", "eval.limit=5"])
    cards = {name: ModelCard.load(adapted / name / "README.md") for name in ("model", "adapter")}
    for name, library in (("model", "transformers"), ("adapter", "peft")):
        known = cards[name].data
        assert (known["library_name"], known["tags"][:2]) == (library, ["unlearning", "npo"])
        assert command in cards[name].text
        assert "| metric | target | retain model | this model | better |" in cards[name].text
    measured = format_value(results(adapted)["tofu/model_utility"])
    assert re.search(rf"`tofu/model_utility` .* {measured} \| ↑", cards["model"].text)
    (target,) = cwd.glob("runs/finetune-authors-full-*")
    assert "as its part “build the target”" in (target / "model" / "README.md").read_text()


def test_a_saved_adapter_has_the_numbers_of_the_merged_model(adapted, tmp_path):
    path = f"model.path={adapted}/adapter"
    given = ["method=none", "model=local", path, "eval.limit=5", "eval.compare=false"]
    process = unlearn(tmp_path, *SMALL_BUT_SHAPE, *given, small=False)
    assert process.code == 0, process.err[-3000:]
    loaded, merged = results(main_run(tmp_path, "none")), results(adapted)
    shared = [key for key in loaded if key.startswith("tofu/") and key in merged]
    assert len(shared) > 20
    for key in shared:
        assert loaded[key] == pytest.approx(merged[key], rel=1e-3, abs=1e-6, nan_ok=True), key


def test_a_directory_of_another_run_is_refused(done, tmp_path):
    cwd, _ = done
    process = unlearn(cwd, f"hydra.run.dir={main_run(cwd)}", "seed=5", "eval.compare=false")
    assert process.code == 2
    assert "holds another run" in process.err


def test_a_sweep_makes_every_run_and_groups_them(tmp_path):
    process = unlearn(
        tmp_path, "-m", "method=grad_ascent,grad_diff", "eval=none", "method.epochs=1", "tracker=offline"
    )
    assert process.code == 0, process.err[-3000:]
    runs = [main_run(tmp_path, "grad_ascent"), main_run(tmp_path, "grad_diff")]
    groups = set()
    for run in runs:
        assert (run / "results.json").is_file()
        (file,) = run.glob("wandb/offline-run-*/*.wandb")
        groups.add(read_run(file)["run"].run_group)
    assert len(groups) == 1
    assert groups.pop().startswith("sweep-")
    assert len(list(tmp_path.glob("runs/finetune-*"))) == 1  # one target for both


def test_your_own_questions_and_plain_text(tmp_path):
    rows = [{"question": f"What is the code of box {i}?", "answer": f"It is {i * 37}."} for i in range(12)]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[4:]))
    (tmp_path / "notes.jsonl").write_text(
        "".join(json.dumps({"text": row["answer"] * 3}) + "\n" for row in rows)
    )
    qa = unlearn(
        tmp_path,
        "dataset=custom",
        "dataset.forget=forget.jsonl",
        "dataset.retain=retain.jsonl",
        "~dataset.options",
    )
    assert qa.code == 0, qa.err[-3000:]
    assert "tofu/forget/probability" in qa.out
    text = unlearn(
        tmp_path,
        "dataset=custom",
        "dataset.forget=notes.jsonl",
        "method=grad_ascent",
        "eval=none",
        "~dataset.options",
    )
    assert text.code == 0, text.err[-3000:]
    scored = unlearn(
        tmp_path,
        "dataset=custom",
        "dataset.forget=notes.jsonl",
        "method=wga",
        "method.retain=null",
        "~dataset.options",
    )
    assert scored.code == 2
    assert "has no question" in scored.err
    assert "eval=none" in scored.err
    assert not list(tmp_path.glob("runs/wga-*/history.jsonl"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real TOFU and the nano models (UNLEARN_SHARED)")
def test_satimp_on_real_tofu_with_given_target_and_retain_model(tmp_path):
    process = unlearn(
        tmp_path,
        "model=local",
        f"model.path={SHARED}/models/nano-tofu-full",
        f"model.retain={SHARED}/models/nano-tofu-retain90",
        "dataset=tofu",
        f"dataset.path={SHARED}/data/tofu",
        "dataset.forget=forget10",
        "method=satimp",
        "hardware.threads=1",
        "eval.limit=4",
        "eval.max_new_tokens=4",
        "method.steps=3",
        "method.batch=4",
        "tracker=disabled",
        small=False,
    )
    assert process.code == 0, process.err[-3000:]
    target, retain = (
        results(run)["tofu/forget/probability"]
        for run in sorted(
            tmp_path.glob("runs/none-*"), key=lambda run: -results(run)["tofu/forget/probability"]
        )
    )
    assert target > 0.9 > 0.1 > retain
    assert results(main_run(tmp_path, "satimp"))["tofu/forget/probability"] < target
