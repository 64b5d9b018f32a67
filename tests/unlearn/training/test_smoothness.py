"""Smoothing in training: weights and gradients of the engine, several processes, the mean of late weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tolerance import assert_trained_alike
from tests.unlearn.rules.test_rules import plain_loss
from tests.unlearn.training import small_training as training
from tests.unlearn.training.test_trainer import in_processes
from unlearn.config import HardwareConfig, MethodConfig, SmoothConfig
from unlearn.run_dir import RunDir
from unlearn.training.optimizers import decay_groups
from unlearn.training.smoothness import ForgetLoss, Smoothness, WeightAverage
from unlearn.training.trainer import Trainer

CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup_epochs": 0, "lr": 1e-3, "weight_decay": 0.1}


def method(preset: str = "grad_diff", **smooth: Any) -> MethodConfig:
    return training.preset(preset, **CONSTANT, smooth=smooth, retain_weight=2.0)


@contextmanager
def running(directory: Path, method: MethodConfig, **hardware: Any) -> Iterator[Trainer]:
    trainer = training.make_trainer(
        directory, HardwareConfig(micro_batch=4, **hardware), method=method, spread=0.2
    )
    trainer.engine.model.train()
    try:
        yield trainer
    finally:
        trainer.engine.close()


def smoothed(trainer: Trainer, **smooth: Any) -> list[Tensor]:
    """The gradient of each backward pass at step 0 with other smoothing, whole, as one vector."""
    trainer.smoothness = None
    if smooth:
        config = trainer.settings.method.smooth.model_copy(update=smooth)
        trainer.smoothness = Smoothness(trainer.steps, config, trainer.rule.separate, lambda *_: None)
    _, gradients = trainer.losses_and_gradients(trainer.plan(0))
    gradients = gradients or [trainer.engine.take_gradients()]
    return [torch.cat([each.flatten() for each in gradient]) for gradient in gradients]


# -- against plain torch -------------------------------------------------------------------------------


def plain_sam(trainer: Trainer, count: int, rho: float) -> dict[str, Tensor]:
    """Weights after some AdamW steps of gradient difference by SAM, in float64."""
    method = trainer.settings.method
    model: Any = training.model_for(method, 0.2).double().train()
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(decay_groups(model, method.weight_decay), lr=method.lr, betas=method.betas)
    for step in range(count):
        own = list(named.values())
        retain = torch.autograd.grad(plain_loss(model, trainer, "retain", step, 2.0), own)
        forget = torch.autograd.grad(plain_loss(model, trainer, "forget", step, -1.0), own)
        length = math.sqrt(sum(float((g * g).sum()) for g in forget))
        with torch.no_grad():
            for p, g in zip(own, forget, strict=True):
                p += rho / length * g
        moved = torch.autograd.grad(plain_loss(model, trainer, "forget", step, -1.0), own)
        with torch.no_grad():
            for p, g in zip(own, forget, strict=True):
                p -= rho / length * g
        for p, f, r in zip(own, moved, retain, strict=True):
            p.grad = f + r
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
    return {name: p.detach() for name, p in named.items()}


@pytest.mark.slow
def test_sam_against_plain_autograd_in_float64(tmp_path: Path) -> None:
    with running(tmp_path, method(name="sam", rho=0.5)) as trainer:
        rows = [trainer.step().row for _ in range(2)]
        found = {name: tensors["weight"] for name, tensors in trainer.engine.state()}
        wanted, without = plain_sam(trainer, 2, 0.5), plain_sam(trainer, 2, 0.0)
    assert_trained_alike(found, wanted, lr=1e-3, steps=2)
    with pytest.raises(AssertionError):  # the perturbation shows
        assert_trained_alike(found, without, lr=1e-3, steps=2)
    assert all(row["smooth/changed"] > 0.95 for row in rows)


NOTHING: list[dict[str, Any]] = [
    {"name": "sam", "rho": 0.0}, {"name": "random", "sigma": 0.0}, {"name": "penalty", "weight": 0.0},
]  # fmt: skip
SOMETHING: list[dict[str, Any]] = [
    {"name": "sam", "rho": 0.1}, {"name": "random", "sigma": 0.01}, {"name": "penalty", "weight": 0.1},
    {"name": "curvature", "weight": 10.0},
]  # fmt: skip


@pytest.mark.parametrize("hardware", [{}, *(pytest.param(h, marks=pytest.mark.slow) for h in (
    {"zero": 2, "dtype": "bf16"}, {"dtype": "bf16", "gradients": "bf16"}
))], ids=str)  # fmt: skip
def test_only_the_forget_gradient_changes_and_the_weights_return(
    tmp_path: Path, hardware: dict[str, Any]
) -> None:
    with running(tmp_path, method("ngdiff"), **hardware) as trainer:
        before = trainer.engine.live_weights()
        forget, retain = smoothed(trainer)
        # 16-bit remainders: a master exactly between two bf16 numbers may have either.
        for smooth in NOTHING if "gradients" not in hardware else []:
            same, other = smoothed(trainer, **smooth)
            assert torch.equal(same, forget), smooth
            assert torch.equal(other, retain)
        for smooth in SOMETHING[: 2 if "dtype" in hardware else None]:
            changed, other = smoothed(trainer, **smooth)
            assert float((changed - forget).norm()) > 1e-3 * float(forget.norm()), smooth
            assert torch.equal(other, retain)
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.engine.live_weights(), strict=True))
        smoothed(trainer, name="sam", rho=0.01)  # 6e-5 on a weight, whose neighbours in bf16 are 5e-4 away
        assert trainer.smoothness is not None
        share = trainer.smoothness.log()["smooth/changed"]
        assert 0.01 < share < 0.5 if "dtype" in hardware else share > 0.95


def test_without_separate_gradients_it_is_their_weighted_sum(tmp_path: Path) -> None:
    with running(tmp_path, method("grad_diff")) as trainer:
        (total,) = smoothed(trainer, name="sam", rho=0.2)
        trainer.rule.separate = True
        forget, retain = smoothed(trainer, name="sam", rho=0.2)
        trainer.rule.separate = False
    assert float((total - forget - 2 * retain).norm()) < 1e-5 * float(total.norm())


def test_noise_is_that_of_the_seed_step_draw_and_parameter(tmp_path: Path) -> None:
    with running(tmp_path, method("grad_diff")) as trainer:

        def drawn(step: int, draw: int, seed: int) -> Tensor:
            loss = ForgetLoss(trainer.steps, trainer.plan(step), [], [], lambda *_: None)
            return torch.cat([each.flatten() for each in loss.noise(draw, 0.5, seed)])

        first = drawn(0, 0, 0)
        assert torch.equal(first, drawn(0, 0, 0))
        others = [drawn(1, 0, 0), drawn(0, 1, 0), drawn(0, 0, 1)]
    count = first.numel()
    assert float(first.std()) == pytest.approx(0.5, rel=6 / math.sqrt(2 * count))
    for one in others:  # a correlation of independent numbers has the deviation 1/√count
        assert abs(float(torch.corrcoef(torch.stack([first, one]))[0, 1])) < 6 / math.sqrt(count)


def averages(run: Path) -> dict[str, Tensor]:
    stored = RunDir(run).load_checkpoint()
    assert stored is not None
    return {n.removeprefix("average/"): t for n, t in stored[1].items() if n.startswith("average/")}


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    smooths = {"sam": {"rho": 0.5}, "random": {"sigma": 0.02}, "average": {"start": 0.4, "every": 1}}
    cases = {
        name: {
            "preset": "grad_diff", "spread": 0.2,
            "keys": {**CONSTANT, "steps": 2, "smooth": {"name": name, **smooths[name]}},
            "hardware": {"processes": 2, "zero": zero, "micro_batch": 2}, "stop_after": 2,
        }
        for name, zero in {"sam": 2, "random": 3, "average": 2}.items()
    }  # fmt: skip
    in_processes(tmp_path, cases, 2)
    for name, case in cases.items():
        alone = training.train(
            tmp_path / "one" / name, HardwareConfig(), method=training.case_of(case), spread=0.2, stop_after=2
        )
        found = load_file(tmp_path / f"{name}.safetensors")
        assert_trained_alike(found, alone, lr=1e-3, steps=2, named=name)
    means = [averages(folder / "average") for folder in (tmp_path, tmp_path / "one")]
    assert_trained_alike(*means, lr=1e-3, steps=2, named="the mean")


# -- the mean of late weights --------------------------------------------------------------------------


def test_the_weights_that_are_averaged() -> None:
    engine: Any = None
    average = WeightAverage(engine, SmoothConfig(name="average", start=0.8, every=5), 125)
    assert [s for s in range(1, 126) if average.count(s) > average.count(s - 1)] == [*range(100, 126, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_the_mean_replaces_the_weights_at_the_end_after_an_interruption_too(
    tmp_path: Path, zero: Any
) -> None:
    smooth = {"name": "average", "start": 0.4, "every": 1}
    made = training.preset("grad_diff", **CONSTANT, smooth=smooth, steps=4)
    after = []
    with running(tmp_path / "steps", made, zero=zero) as trainer:
        for _ in range(4):
            trainer.step()
            after.append({name: t["weight"].double() for name, t in trainer.engine.state()})
    wanted = {name: torch.stack([each[name] for each in after[1:]]).mean(0) for name in after[0]}
    ends = []
    for folder, stop in (("whole", None), ("cut", 3), ("late", 4)) if zero == 0 else (("whole", None),):
        if stop is not None:
            training.train(tmp_path / folder, HardwareConfig(zero=zero, micro_batch=4), method=made,
                           spread=0.2, stop_after=stop)  # fmt: skip
        with running(tmp_path / folder, made, zero=zero) as trainer:
            trainer.run()
            ends.append({name: tensor.clone() for name, tensor in trainer.engine.weights()})
    for name, tensor in wanted.items():
        assert torch.allclose(ends[0][name].double(), tensor, rtol=1e-6, atol=1e-8)
        assert not torch.equal(ends[0][name], after[-1][name].float())
        assert all(torch.equal(end[name], ends[0][name]) for end in ends[1:]), name
    if zero > 0:
        return
    counts = [json.loads(line)["smooth/averaged"] for line in (tmp_path / "cut" / "history.jsonl").open()]
    assert counts == [0, 1, 2, 3]
