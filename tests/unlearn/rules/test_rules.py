"""How terms become one update: rules by hand and against plain autograd, and the rate that follows probes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerance import PASS, approx, assert_trained_alike
from tests.unlearn.training import small_training as training
from unlearn import rules
from unlearn.config import HardwareConfig, MethodConfig, RuleConfig
from unlearn.errors import ConfigError
from unlearn.rules.normalised import Normalised
from unlearn.rules.primal_dual import PrimalDual
from unlearn.rules.scheduled import Scheduled
from unlearn.rules.weighted_sum import WeightedSum
from unlearn.terms import bind
from unlearn.training.optimizers import decay_groups
from unlearn.training.trainer import Trainer

NGDIFF: dict[str, Any] = {"schedule": "constant", "warmup_epochs": 0, "lr": 1e-3, "weight_decay": 0.1}


# -- what is there -------------------------------------------------------------------------------------


def problems(rule: dict[str, Any], terms: Sequence[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rules.check(RuleConfig(**rule), terms)
    return caught.value.problems


def test_the_rules_that_ship() -> None:
    free = [name for name in rules.RULES.names() if not hasattr(rules.RULES.find(name, name), "terms")]
    assert {"normalised", "weighted_sum"} <= set(free)
    for name in free:
        rules.check(RuleConfig(name=name), ["forget"])
    rules.check(RuleConfig(name="primal_dual", epsilon=1), ["forget", "retain", "forget_gate"])
    assert isinstance(rules.make_rule("primal_dual", epsilon=0.5), PrimalDual)
    assert isinstance(rules.make_rule("normalised"), Normalised)


def test_what_is_refused_says_what_and_how_to_mend_it() -> None:
    (unknown,) = problems({"name": "normalized"}, ["forget"])
    assert unknown.startswith("method.rule.name=normalized: no such rule (did you mean normalised?)")
    assert problems({"name": "weighted_sum", "rate": 1}, ["forget"]) == [
        "method.rule.rate=1: rule weighted_sum has no option rate"
    ]
    assert problems({"name": "primal_dual", "epsilon": 1.0, "rates": 2}, ["forget", "retain"]) == [
        "method.rule.rates=2: rule primal_dual has no option rates (did you mean rate?)"
    ]
    assert problems({"name": "primal_dual"}, ["retain"]) == [
        "method.rule.epsilon is not set: rule primal_dual needs it",
        "method.forget has no term: rule primal_dual needs one",
    ]
    assert problems({"name": "primal_dual", "epsilon": "x", "every": "steps"}, ["forget", "retain"]) == [
        "method.rule.epsilon='x': input should be a valid number",
        "method.rule.every='steps': input should be 'step' or 'epoch'",
    ]


def test_the_rule_says_what_is_clipped() -> None:
    method = MethodConfig(name="x", forget={"objective": "ascent"})
    assert rules.clip_norm(method) == 1.0
    assert rules.clip_norm(method.model_copy(update={"clip": 0.5})) == 0.5
    normalised = method.model_copy(update={"rule": RuleConfig(name="normalised")})
    assert rules.clip_norm(normalised) == 0.0
    rules.check(normalised.rule, ["forget"], 0.0)
    with pytest.raises(ConfigError, match=r"method.clip=0.5: rule normalised gives .* leave method.clip out"):
        bind(normalised.model_copy(update={"clip": 0.5}))


def test_a_rule_with_one_backward_pass_combines_nothing() -> None:
    assert WeightedSum().factors() == {}
    assert not WeightedSum().separate
    with pytest.raises(NotImplementedError, match="one backward pass"):
        WeightedSum().combine(torch.eye(2))


# -- primal_dual ---------------------------------------------------------------------------------------


def observed(rule: PrimalDual, losses: Sequence[float], per_epoch: int, first: int = 0) -> list[float]:
    duals = []
    for step, loss in enumerate(losses, start=first + 1):
        rule.observe({"forget": 9.0, "retain": loss}, step / per_epoch)
        duals.append(rule.dual)
    return duals


def test_primal_dual_by_hand_on_means_of_epochs() -> None:
    rule = PrimalDual(epsilon=0.5, rate=2.0, initial=10.0, warmup_epochs=2.0, every="epoch")
    assert rule.factors() == {"retain": 10.0}
    # Epoch 1 changes nothing, and its losses do not count later. At the end of the warm-up, which is that of
    # epoch 2: mean (1 + 2)/2 = 1.5, λ = 10 + 2·1 = 12. Epoch 3: mean 0.25, λ = 12 − 2·0.25 = 11.5.
    found = observed(rule, [7.0, 7.0, 1.0, 2.0, 0.0, 0.5], per_epoch=2)
    assert found == [10.0, 10.0, 10.0, 12.0, 12.0, 11.5]
    assert rule.factors() == {"retain": 11.5}
    assert rule.log() == {"rule/dual": 11.5}


def test_primal_dual_by_hand_at_each_step() -> None:
    rule = PrimalDual(epsilon=0.5, rate=2.0, initial=1.0, warmup_epochs=0.5)
    # Two steps an epoch: the first is warm-up. Then 1 + 2·(1 − 0.5) = 2 and 2 + 2·(0.25 − 0.5) = 1.5.
    assert observed(rule, [9.0, 1.0, 0.25], per_epoch=2) == [1.0, 2.0, 1.5]


def test_the_dual_weight_never_falls_below_zero() -> None:
    rule = PrimalDual(epsilon=2.0, rate=5.0, initial=1.0, warmup_epochs=0, every="step")
    # 1 + 5·(0 − 2) = −9 → 0; 0 + 5·(3 − 2) = 5
    assert observed(rule, [0.0, 0.0, 3.0], per_epoch=4) == [0.0, 0.0, 5.0]


def test_primal_dual_continues_from_its_state_within_an_epoch() -> None:
    losses = [1.0, 2.0, 4.0, 0.5, 0.25, 3.0, 1.0]
    by_epoch: dict[str, Any] = {"epsilon": 0.3, "warmup_epochs": 0, "every": "epoch"}
    whole = PrimalDual(**by_epoch)
    wanted = observed(whole, losses, per_epoch=3)
    for cut in range(len(losses)):
        first, second = PrimalDual(**by_epoch), PrimalDual(**by_epoch)
        begun = observed(first, losses[:cut], per_epoch=3)
        second.load(json.loads(json.dumps(first.state())))
        assert begun + observed(second, losses[cut:], per_epoch=3, first=cut) == wanted


def test_the_trainer_multiplies_the_retain_loss_by_the_dual_weight(tmp_path: Path) -> None:
    rule = {
        "name": "primal_dual",
        "epsilon": 0.5,
        "rate": 2.0,
        "initial": 3.0,
        "warmup_epochs": 1.0,
        "every": "epoch",
    }
    method = training.preset("pdu", rule=rule, epochs=3, lr=1e-3)
    with running(tmp_path, method) as trainer:
        rows = steps(trainer, 9)  # three an epoch
    retain = [row["loss/retain"] for row in rows]
    dual, sums = 3.0, []
    for k, row in enumerate(rows):
        assert row["loss"] == approx(
            row["loss/forget"] + dual * retain[k], scale=abs(row["loss/forget"]) + dual * retain[k]
        )
        sums.append(retain[k])
        if (k + 1) % 3 == 0:
            dual += 2.0 * (sum(sums) / 3 - 0.5)
            sums = []
        assert row["rule/dual"] == pytest.approx(dual, rel=1e-9)
    assert dual > 3.0


# -- scheduled -----------------------------------------------------------------------------------------


def test_scheduled_by_hand() -> None:
    rule = Scheduled(factors={"forget": [10, 4], "retain": [0, 2.0]})
    rule.begin(4)
    found = []
    for step in range(4):
        found.append(dict(rule.factors()))
        rule.observe({"forget": 1.0, "retain": 1.0}, step / 2)
    # 10 − 6·t/4 and 2·t/4; after the last step the last factors
    assert found == [{"forget": 10 - 1.5 * t, "retain": 0.5 * t} for t in range(4)]
    assert rule.factors() == {"forget": 4.0, "retain": 2.0}
    assert rule.log() == {"rule/forget": 4.0, "rule/retain": 2.0}
    second = Scheduled(factors={"forget": [10, 4], "retain": [0, 2.0]})
    second.begin(4)
    second.load(json.loads(json.dumps(rule.state())))
    assert second.factors() == rule.factors()


def test_what_scheduled_refuses() -> None:
    factors = {"forget": [1, 0], "retain_kl": [0, 1]}
    rules.check(RuleConfig(name="scheduled", factors=factors), ["forget", "retain_kl", "retain"])
    assert problems({"name": "scheduled", "factors": factors}, ["forget", "retain"]) == [
        "method.retain_kl has no term: rule scheduled needs one"
    ]
    assert problems({"name": "scheduled"}, ["forget"]) == [
        "method.rule.factors is not set: rule scheduled needs it"
    ]
    (short,) = problems({"name": "scheduled", "factors": {"forget": [1]}}, ["forget"])
    assert short.startswith("method.rule.factors.forget=[1]: list should have at least 2 items")
    (text,) = problems({"name": "scheduled", "factors": {"forget": ["high", 1]}}, ["forget"])
    assert text == "method.rule.factors.forget.0='high': input should be a valid number"


def test_the_trainer_follows_the_schedule(tmp_path: Path) -> None:
    method = training.preset("rr", steps=4, lr=1e-3)
    with running(tmp_path, method) as trainer:
        rows = steps(trainer, 4)
    for step, row in enumerate(rows):
        falling, rising = 10 - 5 * step / 4, 5 * step / 4
        forget = (row["loss/forget"] + row["loss/forget_reroute"]) / 2
        retain = (row["loss/retain"] + row["loss/retain_embedding"]) / 2
        assert row["loss"] == approx(falling * forget + rising * retain, terms=PASS)
        assert row["rule/forget"] == 10 - 5 * (step + 1) / 4
    assert rows[0]["loss/retain"] > 0


# -- normalised ----------------------------------------------------------------------------------------


def test_the_coefficient_of_a_gradient_is_one_over_its_norm() -> None:
    gram = torch.tensor([[4.0, 1.0, 0.0], [1.0, 0.25, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert Normalised().combine(gram).tolist() == [0.5, 2.0, 0.0]


@contextmanager
def running(
    directory: Path, method: MethodConfig, zero: int = 0, micro: int = 4, spread: float = 0.2
) -> Iterator[Trainer]:
    hardware: Any = {"zero": zero, "micro_batch": micro}
    trainer = training.make_trainer(directory, HardwareConfig(**hardware), method=method, spread=spread)
    trainer.engine.model.train()
    try:
        yield trainer
    finally:
        trainer.engine.close()


def steps(trainer: Trainer, count: int) -> list[dict[str, float]]:
    return [trainer.step().row for _ in range(count)]


def plain_loss(model: Any, trainer: Trainer, group: str, step: int, sign: float) -> Tensor:
    """The mean negative log-likelihood of a group's answer tokens, times `sign`, one sequence at a time."""
    some = [u for u in trainer.plan(step).units if u.group == group]
    found = []
    for unit in some:
        s = trainer.data.groups[group].sequence(unit, "answers")
        ids = torch.from_numpy(s.ids)[None]
        logprob = model(input_ids=ids).logits[0, s.answer_start - 1 : -1].log_softmax(-1)
        found.append(-logprob.gather(-1, ids[0, s.answer_start :, None])[:, 0])
    return sign * torch.cat(found).mean()


def plain(
    trainer: Trainer, method: MethodConfig, count: int, terms: Mapping[str, float]
) -> dict[str, Tensor]:
    """The weights after some AdamW steps along Σ ∇/‖∇‖, in float64."""
    model: Any = training.model_for(method, 0.2).double().train()
    optimizer = torch.optim.AdamW(decay_groups(model, method.weight_decay), lr=method.lr, betas=method.betas)
    parameters = list(model.parameters())
    for step in range(count):
        total = [torch.zeros_like(p) for p in parameters]
        for group, sign in terms.items():
            gradient = torch.autograd.grad(plain_loss(model, trainer, group, step, sign), parameters)
            norm = torch.cat([g.flatten() for g in gradient]).norm()
            total = [t + g / norm for t, g in zip(total, gradient, strict=True)]
        for p, g in zip(parameters, total, strict=True):  # not clipped, whatever its norm
            p.grad = g
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def test_normalised_by_hand() -> None:
    # g_R = (3, 4) of length 5, g_F = (0, 2) of length 2; ascent's gradient is −g_F.
    # (3, 4)/5 − (0, 2)/2 = (0.6, 0.8 − 1) = (0.6, −0.2)
    gradients = torch.tensor([[0.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    factors = Normalised().combine(gradients @ gradients.T)
    assert (factors @ gradients).tolist() == pytest.approx([0.6, -0.2], rel=1e-12)


@pytest.mark.parametrize("zero", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_normalised_against_plain_autograd_in_float64(tmp_path: Path, zero: int) -> None:
    method = training.preset("ngdiff", **NGDIFF)
    with running(tmp_path, method, zero) as trainer:
        rows = steps(trainer, 3)
        found = {name: tensors["weight"] for name, tensors in trainer.engine.state()}
        wanted = plain(trainer, method, 3, {"forget": -1.0, "retain": 1.0})
    start = {n: p.detach().double() for n, p in training.model_for(method, 0.2).named_parameters()}
    whole = torch.cat([wanted[n].flatten() for n in wanted]).norm()
    moved = torch.cat([(wanted[n] - start[n]).flatten() for n in wanted]).norm()
    assert float(moved / whole) > 5e-3
    assert_trained_alike(found, wanted, lr=method.lr, steps=3)
    # ‖a/‖a‖ + b/‖b‖‖ is √2 for orthogonal gradients, and lies between 0 and 2
    assert all(0.5 < row["grad_norm"] <= 2.0 for row in rows)
    assert all(row["grad_norm/forget"] > 0 and row["grad_norm/retain"] > 0 for row in rows)


def test_a_term_without_a_gradient_is_left_out(tmp_path: Path) -> None:
    # No probability is as high as the threshold, so that every weight is zero.
    silent = {"objective": "ascent", "weighting": {"name": "nlul", "threshold": 1.0}}
    method = training.preset("ngdiff", **NGDIFF, forget=silent)
    with running(tmp_path, method) as trainer:
        row = steps(trainer, 2)[-1]
        found = {name: tensors["weight"] for name, tensors in trainer.engine.state()}
        wanted = plain(trainer, method, 2, {"retain": 1.0})
    assert row["grad_norm/forget"] == 0
    assert row["grad_norm"] == approx(1.0, terms=PASS)
    assert_trained_alike(found, wanted, lr=method.lr, steps=2)


# -- the rate from probes ------------------------------------------------------------------------------


def auto(**keys: Any) -> MethodConfig:
    return training.preset(
        "grad_diff", lr=1e-3, epochs=4, warmup_epochs=1, schedule="auto",
        auto_lr={"every": 2, "loss": "retain", **keys},
    )  # fmt: skip


@pytest.mark.parametrize("zero", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_probe_that_is_not_followed_leaves_the_run_bit_for_bit(tmp_path: Path, zero: int) -> None:
    with running(tmp_path / "auto", auto(r2=2.0), zero) as trainer:
        rows = steps(trainer, 6)
        probed = [(n, t) for n, t in trainer.engine.state()]
    with running(tmp_path / "plain", auto().model_copy(update={"schedule": "constant"}), zero) as trainer:
        others = steps(trainer, 6)
        unprobed = dict(trainer.engine.state())
    assert len(probed) == len(unprobed)
    for name, tensors in probed:
        assert tensors.keys() == unprobed[name].keys() == {"weight", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(tensor, unprobed[name][key]) for key, tensor in tensors.items())
    science = ("loss", "loss/forget", "loss/retain", "lr", "grad_norm")
    assert [[r[k] for k in science] for r in rows] == [[r[k] for k in science] for r in others]
    # An epoch of three steps warms up; then every second step is probed.
    assert [k for k, row in enumerate(rows) if "autolr/lr" in row] == [3, 5]
    keys = {f"autolr/{key}" for key in ("lr", "proposed", "a", "b", "r2", "accepted")}
    assert {key for key in rows[3] if key.startswith("autolr/")} == keys
    assert [rows[k]["autolr/accepted"] for k in (3, 5)] == [0.0, 0.0]
    assert [rows[k]["autolr/lr"] for k in (3, 5)] == [1e-3, 1e-3]


def test_the_rate_follows_a_probe(tmp_path: Path) -> None:
    # Likelihood alone: the update lowers the loss that is probed, so that its parabola has a minimum ahead.
    method = training.preset(
        "reinforce", lr=1e-3, epochs=4, warmup_epochs=0, schedule="auto",
        auto_lr={"every": 3, "loss": "forget", "r2": 0.5, "smooth": 0.5, "clip": 2.0},
    )  # fmt: skip
    with running(tmp_path, method) as trainer:
        rows = steps(trainer, 7)
    probes = [row for row in rows if "autolr/lr" in row]
    assert [row["step"] for row in probes] == [1, 4, 7]
    assert any(row["autolr/accepted"] for row in probes)
    rate = 1e-3
    for row in rows:
        assert row["lr"] == pytest.approx(rate, rel=1e-12)
        if row.get("autolr/accepted"):
            # half of the old rate and half of the proposed one, which is cut at a factor of two
            rate = 0.5 * rate + 0.5 * min(max(row["autolr/proposed"], rate / 2), rate * 2)
            assert row["autolr/lr"] == pytest.approx(rate, rel=1e-12)
    assert rate != 1e-3


def test_a_probe_is_of_the_next_steps_data_along_the_update(tmp_path: Path) -> None:
    method = training.preset(
        "grad_diff", lr=1e-3, steps=6, warmup_epochs=0, schedule="auto", retain_weight=2.0,
        auto_lr={"every": 1, "loss": "combined", "multipliers": [-1.0, 0.0, 1.0], "r2": 2.0},
    )  # fmt: skip
    seen: list[Sequence[float]] = []
    with running(tmp_path, method) as trainer:
        update = trainer.auto.update
        trainer.auto.update = lambda losses: (seen.append(losses), update(losses))[1]  # type: ignore
        trainer.step()
        before: Any = training.model_for(method, 0.2).double()
        after: Any = training.model_for(method, 0.2).double()
        after.load_state_dict({n: t["weight"] for n, t in trainer.engine.state()}, strict=False)
        mirrored: Any = training.model_for(method, 0.2).double()
        with torch.no_grad():
            for m, a, b in zip(
                mirrored.parameters(), after.parameters(), before.parameters(), strict=True
            ):  # fmt: skip
                m.copy_(2 * b - a)
        with torch.no_grad():
            wanted = [
                float(
                    plain_loss(m, trainer, "forget", 1, -1.0) + 2 * plain_loss(m, trainer, "retain", 1, 1.0)
                )
                for m in (after, before, mirrored)
            ]
    (losses,) = seen
    assert losses == approx(wanted, terms=PASS)
    assert not math.isclose(losses[0], losses[2], rel_tol=1e-3)
