"""Runs that are interrupted at any moment and started again give the numbers of an uninterrupted run."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.launch.children import Nursery
from tests.launch.run.undisturbed import TINY, Place, assert_same, outcome, weights
from tests.paths import ROOT
from tests.tolerance import PASS, approx, assert_trained_alike
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.slow

# On the way an evaluation after the 8th step, and a model after the 4th, 8th and 12th.
BUSY = [*TINY, "eval.every_steps=8", "checkpoint.models_every=4", "hardware.eval_tokens=128"]


@pytest.fixture(scope="module")
def place(children: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("interrupted"), children, BUSY)


def reached(run: Path) -> int:
    """Return the progress of a run: a training step counts as five files of an evaluation or a model."""
    history = run / "history.jsonl"
    rows = len(history.read_bytes().splitlines()) if history.is_file() else 0
    # (`os.walk` does not mind folders that vanish under it.)
    walks = (os.walk(run / name) for name in ("eval", "model", "models"))
    return 5 * rows + sum(len(files) for walk in walks for _, _, files in walk)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 4), (signal.SIGKILL, 2)])
def test_ended_at_random_moments_it_ends_with_the_same(place, number, times):
    """Interrupt this many times in total, in as many runs as needed."""
    drawn = random.Random(number.name)
    runs = (place.folder / f"{number.name}-{count}" for count in itertools.count())
    while times:
        run = next(runs)
        while times and not (run / "results.json").exists():
            times -= end_once(place, run, number, drawn)
        place.done(run)
        assert_same(run, place.undisturbed)


def end_once(place: Place, run: Path, number: signal.Signals, drawn: random.Random) -> bool:
    """Start a run and interrupt it before or after some progress; False if it finished first."""
    begin, way = reached(run), reached(place.undisturbed) / 6
    moment = begin + max(0.0, drawn.uniform(-way / 4, way))
    child = place.start(run)
    at_work = child.until(lambda: reached(run) >= moment)
    # Anywhere between two signs of life.
    time.sleep(drawn.uniform(0, 0.01 if moment > begin else 0.5))
    child.send(number)
    shown = child.ended()
    if shown.code == 0 or not at_work:
        assert (run / "results.json").exists(), shown.err
        return False
    assert shown.code in ((75, -signal.SIGTERM) if number == signal.SIGTERM else (-signal.SIGKILL,)), (
        shown.err
    )
    assert shown.code != 75 or "start it again" in shown.err or "can be resumed" in shown.err, shown.err
    return True


def end_in_verification() -> None:
    """Kill this process as soon as it reads the tokenizer of the model in the folder `unverified`."""

    def read(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and arguments[1] in ("r", "rb"):
            folder, _, name = str(arguments[0]).rpartition("/")
            if name.startswith("tokenizer") and "/unverified/" in folder:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(read)


def test_killed_in_the_verification_of_its_model_it_leaves_none_that_could_be_measured(place):
    run = place.folder / "unverified"
    further = "checkpoint.models_every=null"  # the first model that is verified is the trained one
    child = place.start(run, further, before="tests.launch.run.test_interruptions:end_in_verification")
    assert child.ended().code == -signal.SIGKILL
    assert list(run.glob(".model.*.tmp"))
    assert not (run / "model").exists()
    place.done(run, further)
    log = (run / "run.log").read_text()
    assert "continuing after step 10\n" in log
    assert "model: loaded again" in log
    mine, theirs = (weights(each / "model") for each in (run, place.undisturbed))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


def test_three_that_start_the_same_run_make_it_once(place):
    """The first one is killed; of those that wait, one continues and the other returns its results."""
    run = place.folder / "thrice"
    first = place.start(run)
    assert first.until(lambda: reached(run) >= 5)
    first.send(signal.SIGSTOP)
    others = [place.start(run), place.start(run)]
    for other in others:
        assert other.until(
            lambda other=other: "is being made by another process: waiting" in other.err.read_text()
        )
    first.send(signal.SIGKILL)
    assert first.ended().code == -signal.SIGKILL
    shown = [other.ended() for other in others]
    assert [each.code for each in shown] == [0, 0]
    one, two = ([line for line in each.out.splitlines() if line.startswith("tofu/")] for each in shown)
    assert one == two
    assert (run / "run.log").read_text().count("continuing after step") <= 1
    assert_same(run, place.undisturbed)


def test_a_killed_process_of_two_ends_the_other_and_loses_nothing(place):
    run, given = place.folder / "two", ("eval=none", "checkpoint.models_every=null")
    child = place.start(run, *given, "hardware.processes=2")
    assert child.until(lambda: reached(run) >= 15), child.err.read_text()[-3000:]
    workers = {each.environ()["RANK"]: each for each in psutil.Process(child.pid).children()}
    workers["1"].kill()
    shown = child.ended()
    assert shown.code == 2
    for words in (
        "process 1 of 2",
        "code -9 (SIGKILL)",
        f"{run}/process-1.log",
        "continues from its last checkpoint",
    ):
        assert words in shown.err
    assert not workers["0"].is_running()
    kept = RunDir(run).newest_checkpoint()
    assert kept is not None

    place.done(run, *given)  # with what is left of the machine
    assert f"continuing after step {kept.name[5:]}\n" in (run / "run.log").read_text()
    mine, theirs = ([r for r in outcome(each)["history"] if "loss" in r] for each in (run, place.undisturbed))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    assert [row["loss"] for row in mine] == approx([row["loss"] for row in theirs], terms=PASS * len(theirs))
    lr = max(row["lr"] for row in theirs)
    assert_trained_alike(
        weights(run / "model"), weights(place.undisturbed / "model"), lr=lr, steps=len(theirs)
    )


def test_a_dead_service_of_the_tracker_costs_the_run_nothing(place):
    run = place.folder / "tracked"
    child = place.start(run, "tracker=offline")
    assert child.until(lambda: reached(run) >= 10), child.err.read_text()[-3000:]
    (service,) = (p for p in psutil.Process(child.pid).children(recursive=True) if "wandb" in p.name())
    service.kill()
    shown = child.ended()
    assert shown.code == 0, shown.err[-3000:]
    (warning,) = (
        line
        for line in (run / "run.log").read_text().splitlines()
        if " WARNING " in line or " ERROR " in line
    )
    assert "The run goes on without it" in warning
    assert_same(run, place.undisturbed)


IN_A_WORKER = """
import sys
from launch.compose import checked, compose_run, force_overrides
from launch.run.ensure import ensure
from launch.run.plan import make_plan
ensure(make_plan(checked(compose_run(force_overrides(sys.argv[1:])))).runs[0], progress=False, inside=False)
"""


def test_a_killed_command_of_a_pool_ends_the_process_that_makes_its_run(tmp_path):
    """Nothing else of it is left, so that another process may begin the run at once."""
    keys = [
        f"root={tmp_path}", "method=none", "eval=none", "tracker=disabled", "hardware.threads=1",
        "dataset.options.authors=10", "model.nano.layers=1", "model.finetune.epochs=2000",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", IN_A_WORKER, *keys], env=environment) as command:
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob("*/history.jsonl")):
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = psutil.Process(command.pid).children()
        command.kill()
    assert len(workers) == 1
    _, alive = psutil.wait_procs(workers, timeout=60)
    for each in alive:
        each.kill()
    assert not alive
