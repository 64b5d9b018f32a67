"""The loop on real DeepSpeed: the result does not depend on how a run is executed."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tolerance import PASS, approx, assert_trained_alike
from tests.unlearn.training import small_training as training
from tests.worlds import together
from unlearn.config import CheckpointConfig, HardwareConfig, MethodConfig, RuleConfig
from unlearn.distributed import start_world, stop_world
from unlearn.errors import UserError
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.training import trainer as trainer_module
from unlearn.training.interruption import Checkpoints, next_save
from unlearn.training.learning_rate import schedule_factor, total_steps, warmup_steps
from unlearn.training.trainer import NonFiniteLoss, Trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The whole batch in one forward, one process, no ZeRO."""
    return training.train(tmp_path_factory.mktemp("plain"), HardwareConfig(micro_batch=8))


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """A wrong average (per micro-batch, per process) moves weights by more than a hundredth of lr · steps."""
    assert_trained_alike(found, wanted, lr=training.METHOD.lr, steps=9)


def test_training_moves_the_weights(plain):
    start = {name: p.detach() for name, p in training.tiny_llama().named_parameters()}
    assert plain.keys() == start.keys()
    assert max(float((plain[n] - p).abs().max()) for n, p in start.items()) > 1e-2


@pytest.mark.parametrize(
    "hardware",
    [
        {"micro_batch": 4}, {"micro_batch": 2}, {"micro_batch": 1}, {"micro_tokens": 60},
        *(
            pytest.param(hardware, marks=pytest.mark.slow)
            for hardware in (
                {"zero": 1, "micro_batch": 4}, {"zero": 2, "micro_batch": 2}, {"zero": 3, "micro_batch": 8},
                {"zero": 2, "offload": True}, {"zero": 3, "offload": True},
                {"activation_checkpointing": True},
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_one_process_gives_the_same_however_it_is_split(plain, tmp_path, hardware):
    assert_same(training.train(tmp_path, HardwareConfig(**hardware)), plain)


def in_processes(directory: Path, cases: Mapping[str, object], processes: int) -> None:
    """Run cases in a world of several processes, one after another."""
    file = directory / "cases.json"
    file.write_text(json.dumps(cases))
    together(processes, training.run, file)


@pytest.mark.slow
def test_two_processes_give_the_same_at_every_zero_stage(plain, tmp_path):
    cases = {
        f"zero{zero}-{micro}": {"hardware": {"processes": 2, "zero": zero, "micro_batch": micro}}
        for zero, micro in ((0, 4), (1, 2), (2, 1), (3, 4), (3, 1))
    }
    in_processes(tmp_path, cases, 2)
    for name in cases:
        assert_same(load_file(tmp_path / f"{name}.safetensors"), plain)


@pytest.mark.slow
def test_more_processes_than_examples_in_the_last_batch(tmp_path):
    # 21 forget examples in batches of 10: the last batch of an epoch has 1, with 1 of retain.
    method = {"hardware": {"processes": 3, "zero": 2, "micro_tokens": 40}}
    in_processes(tmp_path, {"three": method}, 3)
    assert_same(load_file(tmp_path / "three.safetensors"), training.train(tmp_path / "one", HardwareConfig()))


@pytest.mark.slow
def test_the_logged_gradient_norm_is_that_before_clipping(tmp_path):
    norms = []
    for zero in (0, 1, 2, 3):
        trainer = training.make_trainer(tmp_path / str(zero), HardwareConfig(zero=zero))
        norms.append(trainer.step().row["grad_norm"])
        trainer.engine.close()
    assert norms[0] > 2 * clip_norm(training.METHOD)
    assert norms == approx([norms[0]] * 4, terms=PASS)


@pytest.mark.parametrize("zero", [0, *(pytest.param(z, marks=pytest.mark.slow) for z in (1, 2, 3))])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, zero):
    hardware = HardwareConfig(zero=zero, micro_batch=4)
    whole = training.train(tmp_path / "whole", hardware)
    training.train(tmp_path / "cut", hardware, stop_after=4)
    resumed = training.train(tmp_path / "cut", hardware)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    rows = [json.loads(line) for line in (tmp_path / "cut" / "history.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    science = ("step", "epoch", "loss", "loss/forget", "loss/retain", "lr", "grad_norm", "tokens")
    assert [[r[key] for key in science] for r in rows] == [[r[key] for key in science] for r in wanted]


def test_checkpoints_by_time_lose_nothing(tmp_path):
    whole = training.train(tmp_path / "run", HardwareConfig(), minutes=1e-9)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {f"step-{n}" for n in range(1, 9)}  # of 9
    for step in range(4, 9):
        shutil.rmtree(checkpoints / f"step-{step}")
    resumed = training.train(tmp_path / "run", HardwareConfig())
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_time_counts_from_the_start_of_the_run_and_from_the_last_checkpoint(tmp_path):
    trainer = training.make_trainer(tmp_path, HardwareConfig(), minutes=30)
    trainer.run()
    assert not (tmp_path / "checkpoints").exists()
    trainer.engine.close()
    begun_earlier = training.make_trainer(tmp_path, HardwareConfig(), minutes=30)
    begun_earlier.checkpoints = Checkpoints(
        RunDir(tmp_path), CheckpointConfig(every_steps=1000, every_minutes=30), time.monotonic() - 1801
    )
    begun_earlier.run()  # as if it had taken half an hour to load
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    begun_earlier.engine.close()


def test_checkpoints_that_take_long_are_written_less_often():
    assert [next_save(5, 100.0, took) for took in (4.0, 29.0, 90.0)] == [400.0, 400.0, 1000.0]


@pytest.mark.slow
def test_processes_agree_on_checkpoints_by_time(plain, tmp_path):
    case = {"hardware": {"processes": 2, "zero": 2}, "minutes": 1e-9}
    in_processes(tmp_path, {"timed": case}, 2)
    assert len(list((tmp_path / "timed" / "checkpoints").iterdir())) == 8
    assert_same(load_file(tmp_path / "timed.safetensors"), plain)


@pytest.mark.slow
def test_resumed_in_bf16_equals_uninterrupted(tmp_path):
    hardware = HardwareConfig(dtype="bf16", zero=2, micro_batch=4)
    whole = training.train(tmp_path / "whole", hardware)
    training.train(tmp_path / "cut", hardware, stop_after=4)
    resumed = training.train(tmp_path / "cut", hardware)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_checkpoint_is_resumed_on_other_hardware(plain, tmp_path):
    training.train(tmp_path / "run", HardwareConfig(zero=1), stop_after=3)
    case = {"directory": "run", "hardware": {"processes": 2, "zero": 3}}
    in_processes(tmp_path, {"other": case}, 2)
    assert_same(load_file(tmp_path / "other.safetensors"), plain)


def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    hardware = HardwareConfig()
    training.train(tmp_path, hardware, stop_after=2)
    before = (tmp_path / "checkpoints" / "step-2").rename(tmp_path / "kept")
    training.train(tmp_path, hardware, stop_after=4)
    before.rename(tmp_path / "checkpoints" / "step-2")
    newest = tmp_path / "checkpoints" / "step-4" / "state-0000.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    trainer = training.make_trainer(tmp_path, hardware)
    assert trainer.steps_made == 2
    assert "step-4 cannot be read" in caplog.text
    trainer.engine.close()


def test_nan_stops_the_run_before_the_update(tmp_path):
    method = training.METHOD.model_copy(update={"retain_weight": float("nan")})
    trainer = training.make_trainer(tmp_path, HardwareConfig(), method=method)
    before = {name: p.detach().clone() for name, p in trainer.engine.module.named_parameters()}
    with pytest.raises(NonFiniteLoss, match=r"step 1 of 9.*batch: forget/\d+.*checkpoint: none yet"):
        trainer.run()
    assert all(torch.equal(before[name], p) for name, p in trainer.engine.module.named_parameters())
    trainer.engine.close()


@pytest.mark.parametrize("zero", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_whose_gradient_is_not_finite_is_counted_and_not_made(tmp_path, zero, monkeypatch, caplog):
    def trainer_with(bad: set[int]) -> Trainer:
        trainer = training.make_trainer(tmp_path, HardwareConfig(zero=zero))
        parameter = next(trainer.engine.module.parameters())
        parameter.register_hook(lambda g: g * math.inf if trainer.steps_made in bad else None)
        return trainer

    def counts(trainer: Trainer) -> set[float]:
        return {float(state["step"]) for state in trainer.engine.model.optimizer.state.values()}

    trainer = trainer_with({1})
    for _ in range(3):
        trainer.step()
    assert (trainer.steps_made, trainer.skipped, counts(trainer)) == (3, 1, {2.0})
    assert caplog.text.count("step 2: the gradient is not finite, no update is made") == 1
    trainer.save()
    trainer.engine.close()
    resumed = trainer_with({3, 4, 5})
    assert (resumed.steps_made, resumed.skipped, counts(resumed)) == (3, 1, {2.0})
    monkeypatch.setattr(trainer_module, "_MOST_SKIPPED", 3)
    with pytest.raises(NonFiniteLoss, match="no gradient was finite in the 3 steps up to 6 of 9"):
        resumed.run()
    resumed.engine.close()


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_not_in_the_next_sum(tmp_path):
    hardware = HardwareConfig(zero=2, offload=True, dtype="bf16", gradients="fp32")
    trainer = training.make_trainer(tmp_path, hardware)
    parameter = next(trainer.engine.module.parameters())
    parameter.register_hook(lambda g: g * math.inf if trainer.steps_made == 1 else None)
    assert [math.isfinite(trainer.step().row["grad_norm"]) for _ in range(4)] == [True, False, True, True]
    trainer.engine.close()


@pytest.mark.parametrize("rule", ["weighted_sum", "normalised"])
def test_a_first_gradient_that_is_not_finite_is_skipped_and_saved(tmp_path, rule):
    def first_is_bad() -> Trainer:
        method = training.METHOD.model_copy(update={"rule": RuleConfig(name=rule), "clip": None})
        trainer = training.make_trainer(tmp_path, HardwareConfig(), method=method)
        parameter = next(trainer.engine.module.parameters())
        parameter.register_hook(lambda g: g * math.inf if trainer.steps_made == 0 else None)
        return trainer

    trainer = first_is_bad()
    before = [p.detach().clone() for p in trainer.engine.module.parameters()]
    row = trainer.step().row
    assert (row["grad_norm"], trainer.skipped) == (math.inf, 1)
    assert math.isfinite(row["loss"])
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.engine.module.parameters(), strict=True))
    trainer.save()  # the optimizer has no moments yet
    whole = [trainer.step().row["loss"] for _ in range(2)]
    trainer.engine.close()
    resumed = first_is_bad()
    assert (resumed.steps_made, resumed.skipped) == (1, 1)
    assert [resumed.step().row["loss"] for _ in range(2)] == whole
    resumed.engine.close()


def saved_without_room(root: str) -> None:
    world = start_world("cpu")
    parts = ((str(i), {"weight": world.sum(torch.ones(2000))}) for i in range(4))  # gathered from all
    if world.main:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        Checkpoints(RunDir(Path(root)), CheckpointConfig()).save(1, parts, {}, world)
        said = ""
    except UserError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    together_now = float(world.sum(torch.ones(1)))  # both are at the same collective
    Path(root, f"{world.rank}.json").write_text(json.dumps([said, together_now]))
    stop_world()


@pytest.mark.slow
def test_a_checkpoint_without_room_fails_on_every_process(tmp_path):
    together(2, saved_without_room, str(tmp_path))
    (first, one), (second, other) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert "step-1" in first
    assert first == second
    assert one == other == 2
    assert not (tmp_path / "checkpoints" / "step-1").exists()


def test_schedule_by_hand():
    # 2 warm-up steps of 6: 1/2, 2/2, then (6−s)/4 for s = 2…5
    assert [schedule_factor(s, 6, 2, "linear") for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [schedule_factor(s, 4, 0, "constant") for s in range(4)] == [1.0] * 4
    # cosine at a half and at the start of the decay
    assert schedule_factor(2, 4, 0, "cosine") == pytest.approx(0.5)
    assert schedule_factor(0, 4, 0, "cosine") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({}, 13),  # an epoch of thirteen steps
        ({"epochs": 1.5}, 10),  # half of the twenty steps: an epoch would be most of them
        ({"steps": 1}, 0),
        ({"warmup_epochs": 0.5}, 6),  # 6.5, half to even
        ({"warmup_epochs": 0}, 0),
        ({"warmup_steps": 129}, 129),
        ({"warmup_share": 0.1, "steps": 125}, 12),  # 12.5, rounded down
        ({"warmup_share": 0.1, "steps": 500}, 50),
        ({"warmup_share": 0.99, "steps": 3}, 2),
    ],
)
def test_warmup_by_hand(keys, steps):
    assert warmup_steps(MethodConfig(name="x", **keys), 13) == steps


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"steps": 6, "warmup_epochs": 1},
            "method.warmup_epochs=1 is 13 steps (13 steps an epoch) and the training has 6: none would be "
            "left at the peak learning rate. Set method.warmup_epochs=0 or fewer than 6 steps, or train "
            "longer",
        ),
        ({"warmup_steps": 130}, "method.warmup_steps=130 is 130 steps and the training has 130"),
        (
            {"warmup_epochs": 1, "warmup_share": 0.1},
            "method.warmup_epochs=1 and method.warmup_share=0.1: the warm-up is set more than once; keep "
            "one, with method.warmup_epochs=null or method.warmup_share=null for the others",
        ),
    ],
)
def test_a_warmup_that_leaves_nothing_or_is_given_twice_is_refused(keys, says):
    with pytest.raises(UserError, match=re.escape(says)):
        warmup_steps(MethodConfig(name="x", **keys), 13)


def test_total_steps():
    # 400 examples in batches of 32 are 13 steps an epoch, the last one smaller
    assert total_steps(MethodConfig(name="x", epochs=10), 13) == 130
    assert total_steps(MethodConfig(name="x", epochs=0.5), 13) == 7
    assert total_steps(MethodConfig(name="x", steps=4, epochs=10), 13) == 4
