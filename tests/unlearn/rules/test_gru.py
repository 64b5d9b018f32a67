"""GRU: the projection by hand, against plain float64, and the gradient that it keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tolerance import PASS, assert_trained_alike, relative
from tests.unlearn.rules.test_rules import plain_loss, problems, running, steps
from tests.unlearn.training import small_training as training
from tests.unlearn.training.test_trainer import in_processes
from unlearn.config import HardwareConfig, MethodConfig
from unlearn.errors import ConfigError
from unlearn.rules.gru import Gru
from unlearn.run_dir import RunDir
from unlearn.terms import bind
from unlearn.training.optimizers import decay_groups
from unlearn.training.step_data import Part
from unlearn.training.trainer import Trainer

# Of a norm, and of a cosine that is not small: errors of single numbers average out.
RELATIVE = relative(terms=PASS)
CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup_epochs": 0, "lr": 1e-3, "weight_decay": 0.1}


def method(**rule: Any) -> MethodConfig:
    return training.preset("gru", **CONSTANT, clip=1.0, rule={"name": "gru", **rule}, retain_weight=2.0)


# -- by hand -------------------------------------------------------------------------------------------


def updates(rule: Gru, *rows: tuple[list[float], list[float]]) -> list[tuple[Tensor, list[float], Tensor]]:
    """The update, its coefficients and what is kept, after each pair of a forget and a retain gradient."""
    kept, found = torch.zeros(len(rows[0][0]), dtype=torch.float64), []
    for forget, retain in rows:
        gradients = torch.stack([torch.tensor(each, dtype=torch.float64) for each in (forget, retain)])
        gradients = torch.cat([gradients, kept[None]])
        update, following = rule.project(gradients @ gradients.T, ["forget", "retain"])
        kept = following @ gradients
        found.append((update @ gradients, update.tolist(), kept))
    return found


def test_what_opposes_the_retain_gradient_is_taken_away() -> None:
    # ⟨(1, −2), (0, 1)⟩ = −2: (1, −2) + 2·(0, 1)
    ((update, _, _),) = updates(Gru(), ([1, -2], [0, 1]))
    assert update.tolist() == pytest.approx([1, 0], abs=1e-12)


def test_the_retain_gradient_is_averaged_with_the_new_one_weighing_gamma() -> None:
    # m₂ = 0.8·(1, 0) + 0.2·(0, 0.8); ⟨f, m₂⟩/⟨m₂, m₂⟩ = −0.8/0.6656
    (_, _, first), (update, coefficients, second) = updates(
        Gru(gamma=0.8), ([0, 1], [0, 1]), ([-1, 0], [1, 0])
    )
    assert first.tolist() == pytest.approx([0, 0.8], rel=1e-12)
    assert second.tolist() == pytest.approx([0.8, 0.16], rel=1e-12)
    assert update.tolist() == pytest.approx([-0.0384615, 0.1923077], abs=5e-8)
    assert coefficients == pytest.approx([1, 0.9615385, 0.2403846], abs=5e-8)


def test_a_strong_conflict_is_only_softened() -> None:
    # cos = −1/√2, counted as −0.5: (−1, 1) + 0.5·√2·(1, 0)
    ((update, _, _),) = updates(Gru(gamma=1.0, cos_clip=-0.5), ([-1, 1], [1, 0]))
    assert update.tolist() == pytest.approx([-0.2928932, 1], abs=5e-8)
    ((weak, _, _),) = updates(Gru(gamma=1.0, cos_clip=-0.8), ([-1, 1], [1, 0]))
    assert weak.tolist() == pytest.approx([0, 1], abs=1e-12)


@pytest.mark.parametrize(("forget", "retain"), [([1, 2], [3, 1]), ([1, 0], [0, 5]), ([-1, 2], [0, 0])])
def test_without_a_conflict_the_coefficients_are_exactly_those_of_the_forget_gradient(
    forget: list[float], retain: list[float]
) -> None:
    ((_, coefficients, _),) = updates(Gru(), (forget, retain))
    assert coefficients == [1.0, 0.0, 0.0]


def test_what_only_opposes_leaves_nothing_and_the_retain_gradient_can_be_added() -> None:
    ((update, _, _),) = updates(Gru(), ([-2, -4], [1, 2]))
    assert update.tolist() == pytest.approx([0, 0], abs=1e-12)
    ((update, _, _),) = updates(Gru(retain_weight=0.5), ([-2, -4], [1, 2]))
    assert update.tolist() == pytest.approx([0.5, 1], abs=1e-12)


def test_all_terms_of_a_side_count() -> None:
    gradients = torch.tensor([[1.0, 0], [0, 1], [-2, 0], [0, -3], [0, 0]], dtype=torch.float64)
    update, kept = Gru(gamma=0.5).project(gradients @ gradients.T, ["forget", "retain", "forget", "retain"])
    # f = (−1, 0), r = (0, −2): orthogonal
    assert update.tolist() == [1, 0, 1, 0, 0]
    assert kept.tolist() == [0, 0.5, 0, 0.5, 0.5]


def test_refused_terms_and_options() -> None:
    assert problems({"name": "gru"}, ["full"]) == [
        "method.forget or method.template has no term: rule gru needs one",
        "method.retain has no term: rule gru needs one",
    ]
    out = problems({"name": "gru", "gamma": 0.0, "cos_clip": 0.5}, ["template", "retain"])
    assert [each.partition(":")[0] for each in out] == [
        "method.rule.gamma=0.0", "method.rule.cos_clip=0.5"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"method\.retain has no term: rule gru needs one"):
        bind(training.preset("gru", retain=None))
    assert [term.name for term in bind(training.preset("idk", rule={"name": "gru"}))] == [
        "template", "retain"
    ]  # fmt: skip


# -- in training ---------------------------------------------------------------------------------------


def plain(trainer: Trainer, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Weights, what is kept, and cosines after some AdamW steps by the definition, in float64."""
    method, gamma = trainer.settings.method, 0.6
    model: Any = training.model_for(method, 0.2).double().train()
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(decay_groups(model, method.weight_decay), lr=method.lr, betas=method.betas)
    mean, cosines = [torch.zeros_like(p) for p in named.values()], []
    for step in range(count):
        ascent = torch.autograd.grad(plain_loss(model, trainer, "forget", step, -1.0), list(named.values()))
        descent = torch.autograd.grad(plain_loss(model, trainer, "retain", step, 2.0), list(named.values()))
        mean = [gamma * r + (1 - gamma) * m for r, m in zip(descent, mean, strict=True)]
        dot = sum(float((f * m).sum()) for f, m in zip(ascent, mean, strict=True))
        square = sum(float((m * m).sum()) for m in mean)
        length = math.sqrt(sum(float((f * f).sum()) for f in ascent))
        cosines.append(dot / length / math.sqrt(square))
        for p, f, m in zip(named.values(), ascent, mean, strict=True):
            p.grad = f - min(dot, 0.0) / square * m
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in named.values()))
        for p in named.values():
            p.grad *= min(1.0, 1.0 / norm)  # clipped after the projection
        optimizer.step()
    return {n: p.detach() for n, p in named.items()}, dict(zip(named, mean, strict=True)), cosines


def oppose(trainer: Trainer) -> None:
    """Make most retain rows those that are forgotten, so that the gradients of the two sets conflict."""
    groups = dict(trainer.data.groups)
    forget, retain = (groups[name].answers for name in ("forget", "retain"))
    assert forget is not None
    assert retain is not None
    rows = [*forget.sequences, *retain.sequences[len(forget.sequences) :]]
    groups["retain"] = replace(groups["retain"], answers=Part(rows))
    trainer.data = trainer.steps.data = replace(trainer.data, groups=groups)


def test_training_against_plain_autograd_in_float64(tmp_path: Path) -> None:
    with running(tmp_path, method(gamma=0.6)) as trainer:
        oppose(trainer)
        rows = steps(trainer, 2)
        found = {name: tensors["weight"] for name, tensors in trainer.engine.state()}
        kept = {name: t["kept"] for name, t in trainer.kept.extend_state(trainer.engine.state())}
        wanted, mean, cosines = plain(trainer, 2)
    assert_trained_alike(found, wanted, lr=1e-3, steps=2)
    assert [row["rule/cosine"] for row in rows] == pytest.approx(cosines, rel=RELATIVE)
    assert max(cosines) < -0.1, "there is a conflict"
    for name, tensor in mean.items():
        assert float((kept[name] - tensor).norm()) <= RELATIVE * float(tensor.norm()), name


def test_gamma_one_keeps_nothing(tmp_path: Path) -> None:
    with running(tmp_path, method(gamma=1.0)) as trainer:
        steps(trainer, 2)
        assert trainer.kept.shares is None
        assert {key for _, t in trainer.kept.extend_state(trainer.engine.state()) for key in t} == {
            "weight", "exp_avg", "exp_avg_sq"
        }  # fmt: skip


def test_a_refused_update_leaves_what_is_kept(tmp_path: Path) -> None:
    with running(tmp_path, method()) as trainer:
        steps(trainer, 1)
        assert trainer.kept.shares is not None
        before = [each.clone() for each in trainer.kept.shares]
        losses = trainer.losses_and_gradients

        def overflowing(plan: Any) -> Any:
            values, gradients = losses(plan)
            gradients[1][0].fill_(math.inf)
            return values, gradients

        trainer.losses_and_gradients = overflowing  # type: ignore[method-assign]
        assert trainer.step().row["grad_norm"] == math.inf
        assert trainer.skipped == 1
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.kept.shares, strict=True))


@pytest.mark.slow
def test_resumed_bit_for_bit_with_what_is_kept(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"method": method().model_copy(update={"steps": 4}), "spread": 0.2}
    hardware = HardwareConfig(micro_batch=4)
    whole = training.train(tmp_path / "whole", hardware, **keys)
    training.train(tmp_path / "cut", hardware, stop_after=2, **keys)
    resumed = training.train(tmp_path / "cut", hardware, **keys)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    wanted, found = (
        [json.loads(line)["rule/cosine"] for line in (tmp_path / run / "history.jsonl").open()]
        for run in ("whole", "cut")
    )
    assert found == wanted
    assert len(wanted) == 4


def kept_in(run: Path) -> dict[str, Tensor]:
    stored = RunDir(run).load_checkpoint()
    assert stored is not None
    return {n.removeprefix("kept/"): t for n, t in stored[1].items() if n.startswith("kept/")}


@pytest.mark.slow
def test_two_processes_train_like_one_and_one_continues_what_two_began(tmp_path: Path) -> None:
    keys = {**CONSTANT, "steps": 3, "rule": {"name": "gru", "gamma": 0.6}}
    case = {"preset": "gru", "spread": 0.2, "keys": keys}
    two = {"processes": 2, "zero": 2, "micro_batch": 2}
    cases = {
        "whole": {**case, "hardware": two},
        "begun": {**case, "hardware": two, "stop_after": 2},
    }
    in_processes(tmp_path, cases, 2)
    made = training.case_of(case)
    training.train(tmp_path / "alone", HardwareConfig(), method=made, spread=0.2, stop_after=2)
    kept = [kept_in(tmp_path / name) for name in ("begun", "alone")]
    assert kept[0].keys() == kept[1].keys() == {n for n, _ in training.tiny_llama().named_parameters()}
    for name, tensor in kept[1].items():
        assert float((kept[0][name] - tensor).norm()) <= RELATIVE * float(tensor.norm()), name
    alone = training.train(tmp_path / "alone", HardwareConfig(), method=made, spread=0.2)
    ended = training.train(tmp_path / "begun", HardwareConfig(), method=made, spread=0.2)
    assert_trained_alike(load_file(tmp_path / "whole.safetensors"), alone, lr=1e-3, steps=3)
    assert_trained_alike(ended, alone, lr=1e-3, steps=3)
