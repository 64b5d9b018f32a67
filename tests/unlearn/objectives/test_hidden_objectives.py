"""Objectives of hidden states and gates: by hand arithmetic and against float64 loops."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tolerance import approx, assert_close
from unlearn.objectives._directions import random_direction
from unlearn.objectives.embedding import embedding
from unlearn.objectives.gate import gate
from unlearn.objectives.redirect import redirect
from unlearn.objectives.reroute import reroute
from unlearn.objectives.rmu import rmu
from unlearn.objectives.rmu_adaptive import rmu_adaptive

N, D = 5, 16


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, N, D, generator=generator, dtype=torch.float64).mul(4).to(dtype).unbind(0)


def drawn(seed=0):
    return torch.rand(D, generator=torch.Generator().manual_seed(seed)).double()


def squares(h, target):
    return sum((a - b) ** 2 for a, b in zip(h, target, strict=True)) / len(h)


def norm(v):
    return math.sqrt(sum(float(x) ** 2 for x in v))


def cosine(h, r):
    return sum(a * b for a, b in zip(h, r, strict=True)) / (squares(h, 0 * h) * squares(r, 0 * r)).sqrt() / D


AHEAD = torch.linspace(-2, 3, D)

CASES = {
    "embedding": (lambda h, r: embedding(h, r), lambda h, r: squares(h, r)),
    "embedding_norm": (lambda h, r: embedding(h, r, form="norm"), lambda h, r: (D * squares(h, r)).sqrt()),
    "reroute": (lambda h, r: reroute(h, r), lambda h, r: cosine(h, r).clamp(min=0)),
    "reroute_back": (lambda h, r: reroute(h, -r), lambda h, r: cosine(h, -r).clamp(min=0)),
    "redirect": (
        lambda h, r: redirect(h, r, AHEAD, coefficient=2.0),
        lambda h, r: squares(h, r + 2 * AHEAD.double()),
    ),
    "rmu": (
        lambda h, r: rmu(h, coefficient=6.5),
        lambda h, r: squares(h, 6.5 * drawn() / norm(drawn())),
    ),
    "rmu_uniform": (
        lambda h, r: rmu(h, coefficient=2.0, seed=3, direction="uniform"),
        lambda h, r: squares(h, 2 * drawn(3)),
    ),
    "rmu_adaptive": (
        lambda h, r: rmu_adaptive(h, r, scale=5.0, seed=1),
        lambda h, r: squares(h, 5 * norm(r) * drawn(1) / norm(drawn(1))),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype):
    function, reference = CASES[name]
    hidden, ref = data(dtype)
    exact = hidden.double().requires_grad_()
    wanted = torch.stack([reference(h, r) for h, r in zip(exact, ref.double(), strict=True)])
    wanted.sum().backward()
    hidden = hidden.clone().requires_grad_()
    values = function(hidden, ref.clone().requires_grad_())
    values.sum().backward()
    assert values.shape == (N,)
    assert values.dtype == torch.float32
    assert_close(values, wanted, terms=D, each=True)
    once = torch.finfo(torch.bfloat16).eps / 2 if dtype == torch.bfloat16 else 0
    assert_close(hidden.grad, exact.grad, dtype=torch.float32, terms=D, rounded=once)
    assert_close(function(hidden[2:4], ref[2:4]), values[2:4], terms=D)


@pytest.mark.parametrize("name", CASES)
def test_finite_at_extremes(name):
    for size in (0.0, 1e4):
        hidden = torch.full((2, D), size, dtype=torch.bfloat16, requires_grad=True)
        values = CASES[name][0](hidden, -hidden.detach())
        values.sum().backward()
        assert torch.isfinite(values).all()
        assert hidden.grad is not None
        assert torch.isfinite(hidden.grad).all()


def test_by_hand():
    # ((1−3)² + (2−0)²)/2 = 4
    h = torch.tensor([[1.0, 2.0]], requires_grad=True)
    value = embedding(h, torch.tensor([[3.0, 0.0]]))
    assert value.item() == 4
    value.sum().backward()
    assert_close(h.grad, torch.tensor([[-2.0, 2.0]]))  # 2(h − h_ref)/D
    # at the origin ‖c·u‖²/D with ‖u‖ = 1; adaptive: c = 5·‖(3, 4)‖
    assert rmu(torch.zeros(1, 2), coefficient=6.5).item() == approx(6.5**2 / 2)
    ref = torch.tensor([[3.0, 4.0]])
    assert rmu_adaptive(torch.zeros(1, 2), ref, scale=5.0).item() == approx(25**2 / 2)


def test_reroute_by_hand():
    # 1 at the start and without a slope there; 3/5 at 53°; 0 from a right angle on, as at a cosine of −.3
    ref = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    h = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-3.0, math.sqrt(91)]], requires_grad=True)
    values = reroute(h, ref)
    assert values.tolist() == approx([1.0, 0.6, 0.0, 0.0], terms=2, scale=1)
    values.sum().backward()
    # (r − cos·h/‖h‖)/‖h‖ = ((1, 0) − .6·(.6, .8))/5
    assert h.grad is not None
    wanted = torch.tensor([[0.0, 0.0], [0.128, -0.096], [0.0, 0.0], [0.0, 0.0]])
    assert_close(h.grad, wanted, terms=2, scale=1)


def test_the_norm_by_hand():
    # (3, 4) away: 5, slope (3, 4)/5; no slope where both are equal
    h = torch.tensor([[4.0, 6.0], [1.0, 2.0]], requires_grad=True)
    values = embedding(h, torch.tensor([[1.0, 2.0]]).expand(2, 2), form="norm")
    assert values.tolist() == [5.0, 0.0]
    values.sum().backward()
    assert h.grad is not None
    assert_close(h.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_redirect_by_hand():
    # d = (1, 2) − (0, 1) = (1, 1), h = (0, 0), c = 2: target (2, 2), mean square 4
    direction, h = torch.tensor([1.0, 2.0]) - torch.tensor([0.0, 1.0]), torch.zeros(1, 2)
    assert redirect(h, h, direction, coefficient=2.0).item() == 4
    assert redirect(h + 2, h, direction, coefficient=2.0).item() == 0
    assert torch.equal(redirect(h, h + 1, direction, coefficient=0.0), embedding(h, h + 1))


def test_a_state_on_the_direction_costs_nothing():
    u = random_direction(torch.zeros(1, D), 7, unit=True)
    assert u.norm().item() == approx(1, terms=D)
    assert rmu(6.5 * u[None], coefficient=6.5, seed=7).item() == 0
    assert rmu(6.5 * u[None], coefficient=6.5, seed=8).item() > 0


def test_directions_lie_in_the_positive_orthant():
    like = torch.zeros(1, 4096)
    first, second = (random_direction(like, seed, unit=True) for seed in (0, 1))
    assert (first >= 0).all()
    # independent uniforms: E[xy]/E[x²] = (1/4)/(1/3)
    assert (first @ second).item() == pytest.approx(0.75, abs=0.03)
    plain = random_direction(like, 0, unit=False)
    assert_close(plain / plain.norm(), first, terms=4096)
    assert plain.norm().item() == pytest.approx(math.sqrt(4096 / 3), rel=0.03)


def test_drawing_a_direction_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    rmu(torch.zeros(1, D), coefficient=1.0, seed=9)
    assert torch.equal(torch.rand(3), wanted)


def test_a_form_that_is_not_there():
    with pytest.raises(ValueError, match=r"form=square: .* \(known: squares, norm\)"):
        embedding(torch.zeros(1, D), torch.zeros(1, D), form="square")  # type: ignore[arg-type]


def test_a_direction_that_is_not_there():
    with pytest.raises(ValueError, match="direction=normal"):
        rmu(torch.zeros(1, D), coefficient=1.0, direction="normal")  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_gate(label):
    logits = torch.tensor([[0.0, 1.5, -2.0], [3.0, -0.5, 0.1]], requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    wanted = torch.stack(
        [
            sum(
                -label * torch.log(1 / (1 + torch.exp(-g))) - (1 - label) * torch.log(1 / (1 + torch.exp(g)))
                for g in row
            )
            / 3
            for row in exact
        ]
    )
    values = gate(logits, label=label)
    values.sum().backward()
    wanted.sum().backward()
    assert_close(values, wanted, terms=4)
    assert logits.grad is not None
    assert_close(logits.grad, exact.grad, terms=4)


def test_gate_by_hand():
    # undecided gates cost ln 2 each, whatever the label and however many
    assert gate(torch.zeros(2, 3), label=1).tolist() == approx([math.log(2)] * 2)
    # σ = 3/4 open: −ln 3/4 where it should be, −ln 1/4 where it should not
    logits = torch.tensor([[math.log(3)]])
    assert gate(logits, label=1).item() == approx(math.log(4 / 3), terms=4)
    assert gate(logits, label=0).item() == approx(math.log(4), terms=4)


@pytest.mark.parametrize("label", [0, 1])
def test_gate_is_finite_at_extremes(label):
    logits = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16, requires_grad=True)
    value = gate(logits, label=label)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
