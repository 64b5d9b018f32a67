"""Runs whose disk is full, whose files are broken and whose clock jumps: nothing finished is lost, and the
message says what happened and what to do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from launch.compose import checked, compose_run, force_overrides
from launch.inspection import inspect
from launch.run.complete import is_complete
from launch.run.config_file import write_config
from launch.run.plan import Planned, make_plan
from tests.file_limit import no_files_above
from tests.launch.children import Nursery
from tests.launch.run.undisturbed import TINY, Place, assert_same
from tests.unlearn.training import small_training as training
from unlearn.config import HardwareConfig
from unlearn.data.tokenization import TokenSequence
from unlearn.files import BrokenFile, NoRoom, leftovers, read_json, write_json
from unlearn.run_dir import RunDir
from unlearn.signals import Stopped, on_stop
from unlearn.training import frozen_outputs
from unlearn.training.observers import Observers
from unlearn.training.trainer import Trainer


@pytest.fixture(scope="module")
def place(children: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("robust"), children, TINY)


# -- a full disk -------------------------------------------------------------------------------------------


STATE = [("w", {"weight": torch.zeros(5000)})]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", lambda folder: write_json(folder / "a.json", {"a": "b" * 20_000})),
        (
            "checkpoints/step-4",
            lambda folder: RunDir(folder).save_checkpoint(4, STATE, {}, keep=1, write=True),
        ),
        ("history.jsonl", lambda folder: RunDir(folder).append_history({"step": 1, "text": "b" * 20_000})),
        ("a.safetensors", lambda folder: frozen_outputs.write(folder / "a.safetensors", [torch.zeros(5000)])),
    ],
)
def test_what_finds_no_room_is_named_and_leaves_what_was_there(tmp_path, name, write):
    rundir = RunDir(tmp_path)
    rundir.save_checkpoint(2, [("w", {"weight": torch.ones(1)})], {}, keep=1, write=True)
    rundir.append_history({"step": 1, "loss": 1.0})
    (tmp_path / "a.json").write_text("{}")
    before = set(tmp_path.rglob("*"))
    with no_files_above(8192), pytest.raises(NoRoom) as raised:
        write(tmp_path)
    for words in (f"{tmp_path / name} could not be written", "ulimit -f", "start again", "are free"):
        assert words in str(raised.value)
    assert set(tmp_path.rglob("*")) == before
    found = rundir.load_checkpoint()
    assert found is not None
    assert found[1]["weight/w"].tolist() == [1.0]
    assert read_json(tmp_path / "a.json") == {}
    # The line that found no room is not there, and the next one is whole.
    rundir.append_history({"step": 2, "loss": 2.0})
    assert [row["step"] for row in rundir.read_history()] == [1, 2]


class Disk:
    """A file system of 8 MB in its own name space, whose space can be filled and freed."""

    def __init__(self, keeper: int, point: Path) -> None:
        self.path = Path(f"/proc/{keeper}/root{point}")

    def leave(self, size: int) -> None:
        ballast = self.path / "ballast"
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(b"\0" * max(0, shutil.disk_usage(self.path).free - size))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount = f"mount -t tmpfs -o size=8m none '{tmp_path}' && echo ready && exec sleep 1000"
    try:
        keeper = subprocess.Popen(["unshare", "-Urm", "sh", "-c", mount], stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    try:
        assert keeper.stdout is not None
        made = Disk(keeper.pid, tmp_path)
        if keeper.stdout.readline() != "ready\n" or not os.access(made.path, os.W_OK):
            pytest.skip("a user may not mount a file system here")
        yield made
    finally:
        keeper.kill()
        keeper.wait()


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_finished(place, disk):
    run, finished = disk.path / "run", place.undisturbed / "model"
    model = sum(file.stat().st_size for file in finished.iterdir())
    checkpoint = 3 * (finished / "model.safetensors").stat().st_size  # weights and two moments

    def fails(room: int, file: str, *further: str) -> None:
        disk.leave(room)
        shown = place.start(run, *further).ended()
        assert shown.code == 2, shown.err[-3000:]
        assert f"{run / file}" in shown.err
        for words in ("could not be written: the disk is full", "free some space and start again"):
            assert words in shown.err
        assert "Traceback" not in shown.err
        assert not (run / "results.json").exists()
        assert not list(run.rglob("*.tmp"))

    fails(checkpoint * 3 // 2, "checkpoints/step-4")
    assert (run / "checkpoints" / "step-2" / "state.json").is_file()
    fails(model // 2, "model", "checkpoint.every_steps=1000")
    assert "continuing after step 2" in (run / "run.log").read_text()
    fails(model + (80 << 10), "eval/tofu/records", "checkpoint.every_steps=1000")
    assert (run / "model" / "model.safetensors").is_file()
    disk.leave(4 << 20)
    place.done(run)
    assert_same(run, place.undisturbed)


# -- broken files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(place: Place) -> Path:
    """A run that was stopped in training, with two checkpoints."""
    run = place.folder / "stopped"
    child = place.start(run, "checkpoint.keep=2")
    assert child.until(lambda: (run / "checkpoints" / "step-4").is_dir())
    child.send(signal.SIGTERM)
    assert child.ended().code == 75
    return run


def numbers(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "spoil", "both"),
    [("state-0000.safetensors", zeros, False), ("state.json", lambda p: p.write_text("[]"), True)],
    ids=["the newest", "both"],
)
def test_a_broken_checkpoint_gives_way_to_the_one_before(place, stopped, tmp_path, file, spoil, both):
    run = shutil.copytree(stopped, tmp_path / "run")
    older, newest = numbers(run)
    spoil(run / "checkpoints" / f"step-{newest}" / file)
    if both:
        spoil(run / "checkpoints" / f"step-{older}" / file)
    place.done(run)
    log = (run / "run.log").read_text()
    assert f"step-{newest} cannot be read" in log
    assert f"trying step-{older} before it" in log
    assert (f"continuing after step {older}" in log) is not both
    assert ("the training begins anew" in log) is both
    assert_same(run, place.undisturbed)


def test_a_checkpoint_of_a_later_step_that_was_broken_does_not_outlive_the_good_ones(tmp_path):
    rundir = RunDir(tmp_path)
    for step in (2, 4, 6):
        rundir.save_checkpoint(
            step, [("w", {"weight": torch.full((1,), float(step))})], {}, keep=2, write=True
        )
    (tmp_path / "checkpoints" / "step-6" / "state.json").write_text("{")
    found = rundir.load_checkpoint()
    assert found is not None
    assert found[0]["step"] == 4
    # Stopped between two checkpoints: step 5 is now the newest that is good.
    rundir.save_checkpoint(5, [("w", {"weight": torch.full((1,), 5.0)})], {}, keep=1, write=True)
    assert numbers(tmp_path) == [5]


def test_what_a_killed_process_had_begun_is_cleared_away(tmp_path):
    rundir = RunDir(tmp_path)
    # In a container the next process may have the number of the one before.
    for number in (os.getpid(), 123456):
        half = tmp_path / "checkpoints" / f".step-2.{number}.tmp"
        half.mkdir(parents=True)
        (half / "state-0000.safetensors").write_bytes(b"half")
    (tmp_path / "eval" / "tofu").mkdir(parents=True)
    (tmp_path / "eval" / "tofu" / ".results.json.7.tmp").write_text("{")
    (tmp_path / ".mine.tmp").write_text("of somebody else")
    rundir.save_checkpoint(2, STATE, {}, keep=1, write=True)
    rundir.clear_leftovers()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    state = {"checkpoints/step-2/state-0000.safetensors", "checkpoints/step-2/state.json"}
    assert left == {".mine.tmp", *state}
    assert not leftovers(tmp_path)


def test_a_line_of_history_that_was_cut_is_not_joined_to_the_next(tmp_path):
    rundir = RunDir(tmp_path)
    rundir.append_history({"step": 1})
    with rundir.history.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in rundir.read_history()] == [1]
    rundir.append_history({"step": 2})
    assert rundir.history.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("content", ["", '{"a": 1', "\0\0\0", "[1]"])
def test_a_broken_json_file_is_named_with_the_fix(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(BrokenFile, match=r"results\.json is broken .*: remove it and start again"):
        read_json(tmp_path / "results.json")


@pytest.mark.parametrize("spoil", [cut, zeros, lambda path: path.write_bytes(b"")])
def test_a_broken_entry_of_the_reference_cache_is_reported_and_counts_as_missing(tmp_path, caplog, spoil):
    sequences = [TokenSequence(np.arange(5), 2, ended=True), TokenSequence(np.arange(4), 1, ended=True)]
    file = tmp_path / "entry.safetensors"
    assert frozen_outputs.read(file, sequences) is None
    assert not caplog.records  # it is just not there
    values = [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0, -5.0, -6.0])]
    frozen_outputs.write(file, values)
    known = frozen_outputs.read(file, sequences)
    assert known is not None
    assert [v.tolist() for v in known] == [v.tolist() for v in values]
    spoil(file)
    assert frozen_outputs.read(file, sequences) is None
    assert frozen_outputs.read_head(file, torch.device("cpu"), torch.float32) is None
    assert all(f"{file} is broken" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2


@pytest.mark.slow
def test_a_cut_cache_and_cut_records_are_made_again(place, tmp_path):
    # Measured in full, but killed before it was written down: what is to be measured is known by its records.
    run = shutil.copytree(place.undisturbed, tmp_path / "run")
    (run / "results.json").unlink()
    record = run / "eval" / "tofu" / "records" / "forget" / "answer.parquet"
    cut(record)
    place.done(run)
    assert f"{record} is broken" in (run / "run.log").read_text()
    # What is read again is read in other portions than before.
    assert_same(run, place.undisturbed, rounded=("eval/",))
    # The model is lost, too: it is trained again.
    (run / "results.json").unlink()
    shutil.rmtree(run / "model")
    (entry,) = (place.folder / "runs" / "cache" / "reference").glob("*.safetensors")
    cut(entry)
    place.done(run)
    log = (run / "run.log").read_text()
    assert f"{entry.relative_to(place.folder)} is broken" in log
    assert "made again" in log
    assert_same(run, place.undisturbed, rounded=("eval/",))


@pytest.mark.slow
def test_a_cut_target_and_cut_results_say_what_to_remove(place, tmp_path):
    run = tmp_path / "run"
    (target,) = (place.folder / "runs").glob("finetune-*")
    model = target / "model" / "model.safetensors"
    whole = model.read_bytes()
    cut(model)
    shown = place.start(run).ended()
    assert shown.code == 2
    folder = model.parent.relative_to(place.folder)
    for words in (
        "model.safetensors is broken, perhaps cut short",
        f"remove {folder} and start that run again",
    ):
        assert words in shown.err
    assert "Traceback" not in shown.err
    shutil.rmtree(model.parent)
    place.done(run)
    assert model.read_bytes() == whole
    assert_same(run, place.undisturbed)

    cut(run / "results.json")
    shown = place.start(run).ended()
    assert shown.code == 2
    assert f"{run}/results.json is broken" in shown.err
    (run / "results.json").unlink()
    place.done(run)
    assert_same(run, place.undisturbed)


# -- a signal between a step and what is due after it ----------------------------------------------------


@pytest.mark.parametrize("at", [4, 9])
def test_what_is_due_after_a_step_is_made_up_for(tmp_path, at):
    """Stopped by a signal in step 4 of 9, after which an evaluation and a model are due, and in the last."""

    def begun(evaluated: list[int], saved: list[int]) -> Trainer:
        def evaluate(step: int) -> dict[str, float]:
            evaluated.append(step)
            return {"seen": 1.0}

        trainer = training.make_trainer(tmp_path, HardwareConfig())
        trainer.observers = Observers(evaluate, 2, saved.append, 4)
        return trainer

    before: tuple[list[int], list[int]] = ([], [])
    trainer = begun(*before)

    def end(*_: object) -> None:
        if trainer.steps_made == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.engine.module.register_forward_pre_hook(end)
    with pytest.raises(Stopped, match=f"after step {at} of 9; it can be resumed"):
        trainer.run()
    trainer.engine.close()
    after: tuple[list[int], list[int]] = ([], [])
    trainer = begun(*after)
    assert trainer.steps_made == at
    trainer.run()
    trainer.engine.close()
    assert before[0] + after[0] == [2, 4, 6, 8]
    assert before[1] + after[1] == [4, 8]
    rows = RunDir(tmp_path).read_history()
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 10))
    assert [row["step"] for row in rows if "seen" in row] == [2, 4, 6, 8]


@pytest.mark.parametrize("at", [4, 9])
def test_a_signal_during_an_evaluation_ends_it_at_once(tmp_path, at):
    """The evaluation is not finished, the step is saved, and the next start measures it."""
    seen: list[int] = []

    def begun() -> Trainer:
        def evaluate(step: int) -> dict[str, float]:
            seen.append(step)
            if step == at and seen.count(at) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                seen.append(-1)  # not reached
            return {"tofu/retain/probability": 1.0}

        trainer = training.make_trainer(tmp_path, HardwareConfig())
        chooses = cast(Any, SimpleNamespace(add=lambda *_, **__: None))  # so that the last is evaluated
        trainer.observers = Observers(evaluate, 4, selection=chooses)
        return trainer

    def stop(_: int) -> None:
        raise Stopped("outside of a training")

    trainer = begun()
    with on_stop(stop), pytest.raises(Stopped, match=f"after step {at} of 9; it can be resumed"):
        trainer.run()
    trainer.engine.close()
    trainer = begun()
    assert trainer.steps_made == at
    trainer.run()
    trainer.engine.close()
    assert seen == sorted([4, 8, 9, at])


# -- a clock that jumps ------------------------------------------------------------------------------------


def clock_goes_back() -> None:
    """Let each reading of the system clock give an hour less than the one before, in another process."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    time.time = earlier


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(place, stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    older, newest = numbers(run)
    for path in (run, *run.rglob("*")):
        far = 4e9 if path.name == f"step-{older}" else 1.0  # of 2096, and of 1970
        os.utime(path, (far, far))
    place.done(run, before="tests.launch.run.test_robust:clock_goes_back")
    assert f"continuing after step {newest}" in (run / "run.log").read_text()
    assert json.loads((run / "results.json").read_text())["run/seconds"] > 0
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all(row["tokens_per_s"] > 0 for row in rows if "loss" in row)
    assert_same(run, place.undisturbed)


@pytest.mark.parametrize("content", ["", "fingerprint: [", "method: {name: npo}\n", "\x00\x01"])
def test_a_broken_config_of_a_run_is_named_with_the_fix(tmp_path, content):
    planned = make_plan(checked(compose_run([f"++root={tmp_path}"]))).main
    write_json(planned.rundir.results, {})
    assert not is_complete(planned)
    planned.rundir.config.write_text(content)
    with pytest.raises(BrokenFile, match=r"config\.yaml is broken.*remove it"):
        is_complete(planned)


def test_a_run_that_left_no_model_is_made_again_to_keep_it(tmp_path):
    def planned(*keys: str) -> Planned:
        return make_plan(checked(compose_run(force_overrides([f"root={tmp_path}", *keys])))).main

    without = planned("save_model=false")
    without.directory.mkdir(parents=True)
    write_config(without)
    write_json(without.rundir.results, {})
    assert is_complete(without)
    assert not is_complete(planned())
    without.rundir.model.mkdir()
    assert is_complete(planned())
    write_config(planned())
    write_json(without.rundir.results, {})
    without.rundir.model.rmdir()  # removed by hand, to have the room
    assert is_complete(planned())


def test_models_that_a_complete_run_did_not_save_are_missed(tmp_path):
    config = checked(compose_run(force_overrides([f"root={tmp_path}", "checkpoint.models_every=5"])))
    plan = make_plan(config)
    for run in plan.runs:
        run.directory.mkdir(parents=True)
        write_config(run)
        write_json(run.rundir.results, {})
        run.rundir.model.mkdir()
    (warning,) = inspect(config, plan)
    assert "checkpoint.models_every=5: the run is complete and saved no models" in warning
    plan.main.rundir.models.mkdir()
    assert inspect(config, plan) == []
    often = config.model_copy(update={"eval": config.eval.model_copy(update={"every_steps": 5})})
    (warning,) = inspect(often, make_plan(often))
    assert "eval.every_steps=5: the run is complete, and was made with none" in warning
