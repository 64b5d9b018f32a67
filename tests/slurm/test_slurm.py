"""Runs as jobs of a real Slurm: an array, cut off by preemption and by the clock; several tasks."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.launch.commands import Shown, done
from tests.launch.tracking.wandb_files import read_run
from tests.paths import ROOT
from tests.slurm.cluster import Cluster, cluster, eventually
from tests.slurm.patient import UNTIL
from tests.tolerance import PASS, approx

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")
pytestmark = pytest.mark.slow

# A model of one layer, whose steps take their time until both runs are cut off.
SMALL = [
    "method=finetune", "method.full.objective=tests.slurm.patient", "eval=none", "model.nano.layers=1",
    "model.nano.hidden_size=32",
    "dataset.options.authors=10", "method.batch=4", "method.steps=800", "hardware.threads=1",
    "checkpoint.every_steps=1000",
]  # fmt: skip
SPECIAL = 'it\'s "$HOME" `ls`; a&b | *'
TAGS = "tracker.tags=['" + SPECIAL.replace("'", "\\'") + "']"
SWEEP = [*SMALL, "seed=0,1", "tracker=disabled", TAGS]
ASKED = ["hydra/launcher=slurm", "hardware.slurm.partition=low", "hardware.slurm.minutes=30"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm"), cpus=2) as found, pytest.MonkeyPatch.context() as patch:
        until = str(tmp_path_factory.mktemp("patient") / "until")
        for key, value in {**found.environment, "PYTHONPATH": str(ROOT), UNTIL: until}.items():
            patch.setenv(key, value)
        yield found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def seeds(root: Path) -> dict[int, Path]:
    """The runs in a folder by their seed."""
    return {int(OmegaConf.load(file).seed): file.parent for file in root.glob("*/config.yaml")}


# -- one array, cut off in the middle ------------------------------------------------------------------------


class Disturbance(threading.Thread):
    """Waits until both runs train; then something more important takes the place of one, and the time of the
    other runs out. What is put back into the queue need not wait the two minutes that Slurm gives it."""

    def __init__(self, slurm: Cluster, runs: Path) -> None:
        super().__init__(daemon=True)
        self.slurm, self.runs = slurm, runs
        self.array: list[dict[str, str]] = []

    def run(self) -> None:
        eventually(lambda: sum(_lines(file) >= 5 for file in self.runs.glob("*/history.jsonl")) == 2)
        self.array = [job for job in self.slurm.jobs() if job["JobState"] == "RUNNING"]
        elements = [f"{job['ArrayJobId']}_{job['ArrayTaskId']}" for job in self.array]
        # What Slurm sends `warning_s` ahead of the time limit; and all there is for somebody else.
        self.slurm.ask("scancel", "--signal=USR2", elements[0])
        self.slurm.ask("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
        for number in range(2):
            eventually(partial(self.waits, number))
        Path(os.environ[UNTIL]).touch()
        for element in elements:
            self.slurm.ask("scontrol", "update", f"JobId={element}", "StartTime=now")

    def waits(self, number: int) -> bool:
        return self.now()[number]["JobState"] == "PENDING"

    def now(self) -> list[dict[str, str]]:
        """What Slurm knows of the array's jobs at this moment."""
        return self.slurm.jobs_numbered(job["JobId"] for job in self.array)


def _lines(file: Path) -> int:
    return file.read_text().count("\n")


@pytest.fixture(scope="module")
def swept(slurm, tmp_path_factory) -> tuple[Path, Path, Shown, Disturbance]:
    """The sweep disturbed as an array, and its first run undisturbed in this process."""
    alone, cut = (tmp_path_factory.mktemp(name) for name in ("alone", "cut off"))
    disturbance = Disturbance(slurm, cut / "runs")
    disturbance.start()
    shown = done(cut, "-m", *SWEEP, *ASKED)
    disturbance.join()
    done(alone, *SMALL, "seed=0", "tracker=disabled")
    return alone / "runs", cut / "runs", shown, disturbance


def test_a_sweep_is_one_array(swept):
    *_, disturbance = swept
    assert len(disturbance.array) == 2
    assert len({job["ArrayJobId"] for job in disturbance.array}) == 1
    assert sorted(job["ArrayTaskId"] for job in disturbance.array) == ["0", "1"]
    assert {job["Partition"] for job in disturbance.array} == {"low"}
    assert {job["TimeLimit"] for job in disturbance.array} == {"00:30:00"}
    eventually(lambda: {job["JobState"] for job in disturbance.now()} == {"COMPLETED"})


def test_runs_checkpoint_when_they_are_cut_off_and_end_as_if_they_had_not_been(swept):
    alone, cut, _, disturbance = swept
    assert [job["Restarts"] for job in disturbance.now()] == ["1", "1"]
    for seed, run in seeds(cut).items():
        log = (run / "run.log").read_text()
        assert log.count("continuing after step") == 1  # no checkpoint was due: the signal's
        assert len(losses(run)) == 800
        if seed in seeds(alone):
            assert_same(run, seeds(alone)[seed])


def test_the_command_tells_what_the_array_made(swept):
    _, cut, shown, _ = swept
    assert "Slurm job 1 is submitted" in shown.err
    (table,) = cut.glob("*.md")
    assert table.read_text().count("\n") == 2 + 2  # the head, and a line for each run
    assert sorted(log.name for log in cut.glob(".submitit/*/*_log.out")) == ["1_0_0_log.out", "1_1_0_log.out"]


def test_special_characters_reach_the_jobs_unharmed(swept):
    _, cut, *_ = swept
    assert [OmegaConf.load(run / "config.yaml").tracker.tags for run in seeds(cut).values()] == [
        [SPECIAL]
    ] * 2


# -- one run by several tasks --------------------------------------------------------------------------------

TOGETHER = [*SMALL, "method.steps=8", "hardware.processes=2"]


def only_run(cwd: Path) -> Path:
    (config,) = cwd.glob("runs/*/config.yaml")
    return config.parent


def assert_same(run: Path, wanted: Path) -> None:
    assert losses(run) == losses(wanted)
    assert all(torch.equal(tensor, weights(wanted)[name]) for name, tensor in weights(run).items())


def test_two_tasks_of_a_job_make_one_run(slurm, tmp_path):
    done(tmp_path, "-m", *TOGETHER, *ASKED, "hardware.slurm.tasks_per_node=2", "tracker=offline", TAGS)
    run = only_run(tmp_path)
    assert (run / "process-1.log").is_file()
    logs = [log.read_text() for log in tmp_path.glob("runs/.submitit/*/*_log.out")]
    assert sum(log.count("report:") for log in logs) == 1  # the task that follows prints nothing
    done(tmp_path, *TOGETHER, "tracker=disabled", "hardware.processes=1", "root=alone")
    (alone,) = tmp_path.glob("alone/*/history.jsonl")
    assert losses(run) == approx(losses(alone.parent), terms=8 * PASS)
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    (sweep,) = tmp_path.glob("runs/sweeps/*/jobs.json")
    assert read_run(file)["run"].run_group == sweep.parent.name  # as all jobs of the sweep
    assert SPECIAL in read_run(file)["run"].tags


# -- what is asked for ---------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_script_that_would_be_submitted(swept, tmp_path):
    _, cut, *_ = swept
    shown = done(cut.parent, "-m", *SWEEP, *ASKED, "dry_run=true")
    (script,) = cut.glob(".submitit/1/1_submission.sh")
    assert script.read_text() in shown.out
