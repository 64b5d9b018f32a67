"""Sweeps whose jobs run in processes of their own, and what becomes of them when processes die."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.launch.children import Child
from tests.launch.commands import unlearn

pytestmark = pytest.mark.slow

# One layer: a step takes a few milliseconds.
TINY = [
    "-m", "dataset.options.authors=10", "model.nano.layers=1", "model.nano.hidden_size=32", "method.batch=4",
    "method=grad_ascent", "model.finetune.epochs=1", "eval=none", "tracker=disabled", "hardware.threads=1",
    "save_model=false",
]  # fmt: skip
POOL = [*TINY, "hydra/launcher=joblib", "checkpoint.every_steps=20"]
SEARCH = [
    *TINY, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", "method.steps=2",
    "method.lr=tag(log,interval(1e-5,1e-3))", "method.warmup_epochs=choice(0,-1)",
    "eval=tofu", "eval.limit=2", "eval.max_new_tokens=2",
]  # fmt: skip
AWKWARD = """a b;$(touch x)&|"q',é=%d`touch y`#.jsonl"""


def records(cwd: Path) -> list[dict[str, Any]]:
    """The records of the jobs so far; a command that begins may be removing one that was cut off."""
    made = []
    for file in sorted(cwd.glob("runs/sweeps/*/[0-9].json")):
        with suppress(FileNotFoundError):
            made.append(json.loads(file.read_text()))
    return made


def test_a_killed_process_loses_no_job_and_frees_its_lock(children, tmp_path):
    """One job builds the target, the other waits; a pool that loses one process ends the other too."""
    command = children.start(
        tmp_path, *POOL, "method=grad_ascent,npo", "method.steps=2", "model.finetune.epochs=15"
    )
    checkpoint = "runs/finetune-*/checkpoints/step-*/state.json"
    assert command.until(lambda: any(tmp_path.glob(checkpoint)) and len(records(tmp_path)) == 2)
    os.kill(records(tmp_path)[0]["process"], signal.SIGKILL)
    shown = command.ended()
    assert shown.code == 0, shown.err[-3000:]
    assert "was killed" in shown.err
    assert "Traceback" not in shown.err
    assert [r["code"] for r in records(tmp_path)] == [0, 0]
    assert [(Path(r["directory"]) / "results.json").is_file() for r in records(tmp_path)] == [True, True]
    (log,) = tmp_path.glob("runs/finetune-*/run.log")
    assert "continuing after step" in log.read_text()
    assert shown.out.count("[1/2] method=grad_ascent") == 2


def trains(folder: Path) -> bool:
    """Whether the target has made a step; its history is there, and empty, a moment before."""
    return any(file.stat().st_size for file in folder.glob("runs/finetune-*/history.jsonl"))


def test_a_signal_to_the_command_stops_its_jobs_where_they_can_go_on(children, tmp_path):
    """One trains the target and the other waits for it; the third is not begun."""
    command = children.start(tmp_path, *POOL, "seed=0,1,2", "model.finetune.epochs=2000")
    assert command.until(lambda: len(records(tmp_path)) == 2 and trains(tmp_path))
    command.send(signal.SIGTERM)
    shown = command.ended()
    assert shown.code == 75, shown.err[-3000:]
    assert "Traceback" not in shown.err
    assert [r["code"] for r in records(tmp_path)] == [75, 75]
    assert len(list(tmp_path.glob("runs/finetune-*/checkpoints/step-*/state.json"))) == 1
    assert "not begun: " in shown.out
    assert "seed=2" in shown.out.splitlines()[-1]
    assert "the same command continues the sweep" in shown.err


def test_awkward_names_reach_the_jobs_as_they_are(tmp_path):
    """Of a sweep over three files, one of which is not there: its run alone fails."""
    names = [AWKWARD % number for number in (1, 2)]
    for name in names:
        rows = [{"question": f"What is the code of box {i}?", "answer": f"It is {i * 37}."} for i in range(8)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    quoted = ["'" + name.replace("'", "\\'") + "'" for name in names]
    given = f"dataset.forget={quoted[0]},gone.jsonl,{quoted[1]}"
    tiny = [one for one in TINY if not one.startswith("dataset")]
    shown = unlearn(tmp_path, *tiny, "dataset=custom", given, "method.steps=2")
    assert shown.code == 2
    assert [r["code"] for r in records(tmp_path)] == [0, 2, 0]
    found = [OmegaConf.load(Path(records(tmp_path)[n]["directory"]) / "config.yaml") for n in (0, 2)]
    assert [config.dataset.forget for config in found] == names
    assert f"[3/3] dataset.forget={quoted[1]}" in shown.out
    assert "failed: forget=gone.jsonl: " in shown.out
    assert "no such file" in shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "runs"])


def test_a_search_goes_on_after_a_failed_trial_and_repeats_itself(tmp_path):
    first = unlearn(tmp_path, *SEARCH, "goal.maximize=tofu/forget/truth_ratio")
    made = records(tmp_path)
    failed = [n for n, r in enumerate(made) if r["code"] == 2]
    assert 0 < len(failed) < 4
    assert first.code == 2
    assert "warmup_epochs=-1" in first.out
    values = {n: r["value"] for n, r in enumerate(made) if n not in failed}
    for number, value in values.items():
        results = json.loads((Path(made[number]["directory"]) / "results.json").read_text())
        assert value == results["tofu/forget/truth_ratio"]
    (found,) = tmp_path.glob("runs/sweeps/*/optimization_results.yaml")
    best = OmegaConf.load(found)
    assert best.best_value == max(values.values())
    assert f"best: lr={best.best_params['++method.lr']:.4g} " in first.out
    # The same trials again, whose runs are complete; what must hold now holds for none.
    again = unlearn(tmp_path, *SEARCH, "goal.subject_to={tofu/model_utility: '>= 2'}")
    assert again.out.count("5/5 run: ") == again.out.count("(complete)") / 5 == 4 - len(failed)
    assert "no trial meets the constraints (goal.subject_to)" in again.out
    assert "misses by " in again.out


def test_a_goal_that_is_not_measured_is_reported(tmp_path):
    """The retain model's part of TOFU is left out."""
    shown = unlearn(tmp_path, *SEARCH, "hydra.sweeper.n_trials=2", "eval.compare=false")
    assert shown.code == 2
    assert "the run's results have no tofu/forget_quality_log10" in shown.err
    assert "Traceback" not in shown.err


SHARED = [
    *(one for one in SEARCH if "warmup" not in one), "goal.maximize=tofu/forget/truth_ratio",
    "hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.heartbeat_s=1",
]  # fmt: skip


def test_two_commands_search_in_one_database_and_one_is_killed(children, tmp_path):
    """The other makes what is left, the trial that was cut off too; started again, nothing is left to do."""
    killed, other = (children.start(tmp_path, *SHARED) for _ in range(2))

    def codes(command: Child) -> list[int | None]:
        return [record["code"] for record in records(tmp_path) if record["process"] == command.pid]

    # Each has made one at least, and the first is in the middle of another.
    assert killed.until(lambda: 0 in codes(other) and {0, None} == set(codes(killed)))
    (cut_off,) = [
        record for record in records(tmp_path) if record["code"] is None and record["process"] == killed.pid
    ]
    killed.send(signal.SIGKILL)
    assert killed.ended().code == -signal.SIGKILL
    made_by_killed = codes(killed).count(0)
    shown = other.ended()
    assert shown.code == 0, shown.err[-3000:]
    made = records(tmp_path)
    assert [record["code"] for record in made] == [0] * 4
    assert len({str(record["overrides"]) for record in made}) == 4
    assert [record["process"] for record in made].count(killed.pid) == made_by_killed
    assert cut_off["overrides"] in [record["overrides"] for record in made]
    again = children.start(tmp_path, *SHARED).ended()
    assert again.code == 0
    assert "run: " not in again.out
    for out in (shown.out, again.out):
        assert len(re.findall(r"^ lr=", out, re.MULTILINE)) == 4
    best = OmegaConf.load(next(tmp_path.glob("runs/sweeps/*/optimization_results.yaml")))
    assert best.best_value == max(record["value"] for record in made)
    more = children.start(tmp_path, *SHARED, "hydra.sweeper.n_trials=5").ended()
    assert len(re.findall(r"^ lr=", more.out, re.MULTILINE)) == len(records(tmp_path)) == 5


def test_a_search_that_is_stopped_goes_on_with_the_same_trial(children, tmp_path):
    search = [
        *SHARED,
        "hydra.sweeper.storage=study.journal",
        "method.steps=2000",
        "checkpoint.every_steps=1000",
    ]
    command = children.start(tmp_path, *search)
    unlearning = "runs/grad_ascent-*/history.jsonl"
    assert command.until(lambda: any(file.stat().st_size for file in tmp_path.glob(unlearning)))
    (before,) = records(tmp_path)
    command.send(signal.SIGTERM)
    assert command.ended().code == 75
    again = children.start(tmp_path, *search)
    assert again.until(lambda: [record["process"] for record in records(tmp_path)] == [again.pid])
    (after,) = records(tmp_path)
    again.send(signal.SIGKILL)
    again.ended()
    assert after["overrides"] == before["overrides"]


def test_each_job_of_a_pool_has_a_process_and_sees_a_gpu_of_its_own(children, tmp_path):
    """There is none on a machine without: each job is refused, and says which one it saw."""
    command = children.start(
        tmp_path, *TINY, "hydra/launcher=joblib", "hardware.device=cuda", "seed=0,1",
        environment={"CUDA_VISIBLE_DEVICES": "7,8"},
    )  # fmt: skip
    assert command.ended().code == 2
    made = records(tmp_path)
    seen = {re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", record["reason"])[0] for record in made}
    assert seen <= {"7", "8"}  # not "7,8"
    assert len(made) == 2
    assert command.pid not in [record["process"] for record in made]
    assert {file.name for file in tmp_path.glob("runs/sweeps/*/gpus/*/*-0.lock")} >= {
        f"{gpu}-0.lock" for gpu in seen
    }
