"""Objectives of whole distributions: by hand arithmetic, against float64 autograd, at the edges of fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerance import approx, assert_close
from unlearn.objectives import _soft
from unlearn.objectives._soft import soft_cross_entropy, soft_kl
from unlearn.objectives.ceu import ceu
from unlearn.objectives.contrast import contrast
from unlearn.objectives.flatness import flatness
from unlearn.objectives.ihl import ihl
from unlearn.objectives.jensun import jensun
from unlearn.objectives.js import js
from unlearn.objectives.kl import kl
from unlearn.objectives.max_entropy import max_entropy
from unlearn.objectives.proximity import proximity
from unlearn.objectives.undial import undial

N, V = 7, 11


def data(seed=0, dtype=torch.float32, scale=3.0):
    """Logits, two further sets of logits, labels."""
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(3, N, V, generator=generator, dtype=torch.float64).mul(scale).to(dtype)
    return *sets.unbind(0), torch.randint(V, (N,), generator=generator)


# The formulas again, one position at a time in float64, with autograd.


def softmax(z):
    return torch.exp(z) / torch.exp(z).sum()


def ce(target, z):
    return -sum(q * torch.log(p) for q, p in zip(target, softmax(z), strict=True) if q > 0)


def kl_row(q, p):
    return sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(q, p, strict=True))


def undial_row(z, ref, other, y, beta):
    target = ref.clone()
    target[y] -= beta
    return ce(softmax(target), z)


def ceu_row(z, ref, other, y):
    p = softmax(z.detach())
    rest = 1 - p[y]
    return ce([p[v] / rest if v != y else torch.tensor(0.0) for v in range(len(z))], z)


def contrast_row(z, base, reinforced, y, alpha):
    lowered = torch.stack([b - alpha * max(r - b, 0 * b) for b, r in zip(base, reinforced, strict=True)])
    return ce(softmax(lowered), z)


def quadratic_row(z, teacher, other, y):
    q, difference = softmax(teacher), z - teacher
    mean = sum(a * d for a, d in zip(q, difference, strict=True))
    return sum(a * (d - mean) ** 2 for a, d in zip(q, difference, strict=True)) / 2


def js_rows(p, q):
    """For a target with a mass of its own, too; an outcome without mass costs nothing."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return sum(a * torch.log(a / c) for row in (p, q) for a, c in zip(row, m, strict=True) if a > 0) / 2


def one_each(size, tokens):
    return [torch.tensor(float(v in tokens), dtype=torch.float64) for v in range(size)]


def refusal(y):
    return torch.stack([y, y + 3, y], dim=-1) % V


def hinge_row(z, ref, other, y):
    p = softmax(z)
    return max(0 * p[y], 1 + p[y] - max(p[v] for v in range(len(z)) if v != y))


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "soft_cross_entropy": (
        lambda z, r, o, y: soft_cross_entropy(z, r),
        lambda z, r, o, y: ce(softmax(r), z),
    ),
    "soft_kl": (lambda z, r, o, y: soft_kl(z, r), lambda z, r, o, y: kl_row(softmax(r), softmax(z))),
    "kl": (lambda z, r, o, y: kl(z, r), lambda z, r, o, y: kl_row(softmax(r), softmax(z))),
    "proximity_kl": (
        lambda z, r, o, y: proximity(z, r),
        lambda z, r, o, y: kl_row(softmax(r), softmax(z)),
    ),
    "proximity_quadratic": (lambda z, r, o, y: proximity(z, r, form="quadratic"), quadratic_row),
    "undial": (lambda z, r, o, y: undial(z, r, y, beta=10.0), partial(undial_row, beta=10.0)),
    "ceu": (lambda z, r, o, y: ceu(z, y), ceu_row),
    "contrast": (lambda z, r, o, y: contrast(z, r, o, alpha=2.0), partial(contrast_row, alpha=2.0)),
    "max_entropy": (
        lambda z, r, o, y: max_entropy(z),
        lambda z, r, o, y: kl_row(torch.full_like(z, 1 / len(z)), softmax(z)),
    ),
    "js": (lambda z, r, o, y: js(z, r), lambda z, r, o, y: js_rows(softmax(z), softmax(r))),
    "jensun": (
        lambda z, r, o, y: jensun(z, refusal(y)),
        lambda z, r, o, y: js_rows(softmax(z), one_each(len(z), [y])),
    ),
    "jensun_released": (
        lambda z, r, o, y: jensun(z, refusal(y), target="released"),
        lambda z, r, o, y: js_rows(softmax(z), one_each(len(z), [y, (y + 3) % V])),
    ),
    "ihl": (lambda z, r, o, y: ihl(z, y), hinge_row),
    "flatness": (lambda z, r, o, y: flatness(z), lambda z, r, o, y: (max(z) - sum(z) / len(z)) ** 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype, monkeypatch):
    monkeypatch.setattr(_soft, "_CPU_BLOCK", 3 * V)  # blocks of 3, 3 and 1 rows
    function, reference = CASES[name]
    z, r, o, y = data(dtype=dtype)
    exact = [t.double() for t in (z, r, o)]
    weights = torch.linspace(-2, 3, N)

    z = z.clone().requires_grad_()
    values = function(z, r, o, y)
    assert values.shape == (N,)
    assert values.dtype == torch.float32
    (values * weights).sum().backward()

    exact[0].requires_grad_()
    wanted = torch.stack([reference(*(t[n] for t in exact), int(y[n])) for n in range(N)])
    (wanted * weights).sum().backward()

    assert_close(values, wanted, terms=V)
    assert z.grad.dtype == dtype
    # in bf16 the derivative is rounded twice, by half of eps each time
    twice = torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 0
    assert_close(z.grad, exact[0].grad, dtype=torch.float32, terms=V, rounded=twice)


class TestByHand:
    """Vocabularies of two and three tokens."""

    def test_cross_entropy_and_kl(self):
        # q = (1/2, 1/2), p = (1/4, 3/4): CE = (ln 4 + ln 4/3)/2 = .836988; KL = CE − ln 2 = .143841
        z, even = torch.tensor([[1.0, 3.0]]).log(), torch.zeros(1, 2)
        assert soft_cross_entropy(z, even).item() == approx(math.log(16 / 3) / 2, terms=4)
        assert kl(z, even).item() == approx(math.log(4 / 3) / 2, terms=4, scale=1)
        # the other way: KL(p ‖ even) = ln 2 + (1/4) ln 1/4 + (3/4) ln 3/4 = .130812
        assert kl(even, z).item() == approx(0.130812, terms=4, scale=1, decimals=6)
        assert max_entropy(z).item() == approx(math.log(4 / 3) / 2, terms=4, scale=1)

    def test_quadratic(self):
        # q = (1/4, 3/4), Δ = (1, −1): mean −1/2, ½(¼·(3/2)² + ¾·(1/2)²) = ½ · ¾
        teacher = torch.tensor([[1.0, 3.0]]).log()
        value = proximity(teacher + torch.tensor([1.0, -1.0]), teacher, form="quadratic")
        assert value.item() == approx(0.375, terms=4)

    def test_undial(self):
        # even reference, β = ln 3: target (1/4, 3/4) against even p: ln 2
        even, y = torch.zeros(1, 2, requires_grad=True), torch.tensor([0])
        value = undial(even, torch.zeros(1, 2), y, beta=math.log(3))
        assert value.item() == approx(math.log(2), terms=4)
        value.sum().backward()
        assert_close(even.grad, torch.tensor([[0.25, -0.25]]), terms=4)  # p − q

    def test_ceu(self):
        # p = (1/2, 1/4, 1/4), y = 0: target (0, 1/2, 1/2): −ln 1/4
        z = torch.tensor([[2.0, 1.0, 1.0]]).log().requires_grad_()
        value = ceu(z, torch.tensor([0]))
        assert value.item() == approx(math.log(4), terms=4)
        value.sum().backward()
        assert_close(z.grad, torch.tensor([[0.5, -0.25, -0.25]]))

    def test_contrast(self):
        # v_b even, v_r = (ln 2, −5): the first falls by 1·ln 2, the second is left: target (1/3, 2/3)
        z = torch.tensor([[1.0, 3.0]]).log()
        value = contrast(z, torch.zeros(1, 2), torch.tensor([[math.log(2), -5.0]]), alpha=1.0)
        assert value.item() == approx((math.log(4) + 2 * math.log(4 / 3)) / 3, terms=4)

    @pytest.mark.parametrize(
        ("p", "wanted"),
        [(0.0, 0.6931472), (0.1, 0.5255973), (0.5, 0.2157616), (0.9, 0.0359738), (1.0, 0.0)],
    )
    def test_jensun(self, p, wanted):
        # ln 2 + ½[p ln p − (1 + p) ln(1 + p)], slope ½ p(1 − p) ln(p/(1 + p)) on its logit
        z = torch.tensor([[p, (1 - p) / 2, (1 - p) / 2]]).clamp(min=1e-30).log().requires_grad_()
        value = jensun(z, torch.tensor([[0]]))
        assert value.item() == approx(wanted, terms=4, scale=1, decimals=7)
        value.sum().backward()
        pull = p * (1 - p) / 2 * math.log(p / (1 + p)) if p else 0.0
        assert z.grad is not None
        assert_close(z.grad, torch.tensor([[pull, -pull / 2, -pull / 2]]), terms=4, scale=0.2)

    def test_jensun_as_released(self):
        # A mass of 1 on two of three tokens: shared alike .0849495, on one of them .3465736 = ½ ln 2
        z = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).clamp(min=1e-30).log()
        both = torch.tensor([[0, 1], [1, 0]])
        values = jensun(z, both, target="released")
        assert values.tolist() == approx([0.0849495, 0.3465736], terms=4, scale=1, decimals=7)
        # A token that the refusal has twice has its mass once.
        assert torch.equal(jensun(z, both[:, [0, 1, 0]], target="released"), values)
        assert torch.equal(jensun(z, both[:, [0, 0]], target="released"), jensun(z, both))

    def test_js(self):
        # p = (.7, .2, .1), q = (.5, .3, .2): m = (.6, .25, .15)
        p, q = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
        assert js(p, q).item() == approx(0.0219012, terms=3, scale=1, decimals=7)
        assert js(p, q).item() == approx(js(q, p).item(), terms=3, scale=1)
        # nothing in common: ln 2
        apart = torch.tensor([[1e4, 0.0]])
        assert js(apart, apart.flip(-1)).item() == approx(math.log(2), terms=2)

    def test_ihl(self):
        z = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]).log().requires_grad_()
        values = ihl(z, torch.tensor([0, 0, 0]))
        assert values.tolist() == approx([1.5, 0.3, 1.0], terms=3)
        values.sum().backward()
        # p_y(δ_y − p) − p_m(δ_m − p) of (.1, .8, .1): (.1 + .07, −.8 + .56, .07)
        assert z.grad is not None
        assert_close(z.grad[1], torch.tensor([0.17, -0.24, 0.07]), terms=3)

    def test_flatness(self):
        # (4 − 2)² ; derivative 2·2·((0, 0, 1) − 1/3)
        z = torch.tensor([[0.0, 2.0, 4.0]], requires_grad=True)
        value = flatness(z)
        assert value.item() == 4
        value.sum().backward()
        assert_close(z.grad, torch.tensor([[-4 / 3, -4 / 3, 8 / 3]]))


@pytest.mark.parametrize("distance", [proximity, partial(proximity, form="quadratic"), js])
def test_equal_distributions_have_a_distance_of_exactly_zero(distance):
    z = data()[0].requires_grad_()
    value = distance(z, z.detach().clone())
    value.sum().backward()
    assert value.abs().max() == 0
    assert z.grad.abs().max() == 0


def test_the_quadratic_form_is_the_kl_for_small_steps():
    teacher, step, _, _ = data(scale=1.0)
    near = teacher.double() + 1e-2 * step.double()
    exact = torch.stack([kl_row(softmax(t), softmax(z)) for t, z in zip(teacher.double(), near, strict=True)])
    quadratic = proximity(near.float(), teacher, form="quadratic")
    torch.testing.assert_close(quadratic.double(), exact, rtol=2e-2, atol=0)  # third order in the step


def test_kl_is_cross_entropy_less_entropy():
    z, r, _, _ = data()
    crossed = soft_cross_entropy(z, r)
    assert_close(kl(z, r), crossed - soft_cross_entropy(r, r), terms=V, scale=float(crossed.max()))


def test_undial_without_strength_distils_the_reference():
    z, r, _, y = data()
    assert_close(undial(z, r, y, beta=0.0), soft_cross_entropy(z, r), terms=V)


def test_ceu_is_undial_of_itself_with_endless_strength():
    z, _, _, y = data()
    assert_close(ceu(z, y), undial(z, z, y, beta=1e4), terms=V)


def test_the_contrast_of_a_model_that_learnt_nothing_is_the_reference():
    z, r, _, _ = data()
    assert_close(contrast(z, r, r - 1, alpha=5.0), soft_cross_entropy(z, r), terms=V)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_a_shift_of_all_logits_changes_nothing(seed, shift):
    z, r, o, y = data(seed)
    for name in CASES:
        function = CASES[name][0]
        # A logit plus a shift of fifty has lost the digits that the sum cannot hold.
        wanted, scale = function(z, r, o, y), abs(shift) + float(z.abs().max())
        assert_close(function(z + shift, r, o, y), wanted, terms=V, condition=4, scale=scale, named=name)


@given(seed=st.integers(0, 1000))
def test_divergences_are_not_negative(seed):
    z, r, _, _ = data(seed)
    for value in (kl(z, r), proximity(z, r, form="quadratic"), max_entropy(z), flatness(z)):
        assert value.min() > -1e-6


EDGES = {
    "sure": torch.tensor([[1e4, -1e4, 0.0, -1e4]]),
    "sure of another": torch.tensor([[-1e4, 1e4, 0.0, -1e4]]),
    "all high": torch.full((1, 4), 1e4),
    "even": torch.zeros(1, 4),
    "hardly sure": torch.tensor([[30.0, 0.0, 0.0, 0.0]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_finite_at_extremes(name, dtype):
    for z in EDGES.values():
        for r in EDGES.values():
            logits = z.to(dtype, copy=True).requires_grad_()
            values = CASES[name][0](logits, r.to(dtype), r.flip(-1).to(dtype), torch.tensor([0]))
            values.sum().backward()
            assert torch.isfinite(values).all()
            assert logits.grad is not None
            assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", CASES)
def test_positions_are_independent_and_inputs_left_alone(name):
    function = CASES[name][0]
    inputs = data()
    before = [t.clone() for t in inputs]
    order = torch.tensor([4, 0, 6, 2])
    assert_close(function(*(t[order] for t in inputs)), function(*inputs)[order], terms=V)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert function(*(t[:0] for t in inputs)).shape == (0,)


@pytest.mark.parametrize("name", CASES)
def test_only_the_logits_carry_gradient(name):
    z, r, o, y = data()
    z, r, o = (t.requires_grad_() for t in (z, r, o))
    values = CASES[name][0](z, r, o, y)
    first = torch.autograd.grad(values.sum(), z, retain_graph=True)[0]
    second = torch.autograd.grad(values.sum(), z, retain_graph=True)[0]
    assert torch.equal(first, second)
    values.sum().backward()
    assert r.grad is None
    assert o.grad is None
    with torch.no_grad():
        assert not CASES[name][0](z, r, o, y).requires_grad


def test_one_tensor_of_the_size_of_the_logits_is_kept():
    z, r, _, y = data()
    kept = []

    def keep(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        undial(z.requires_grad_(), r, y, beta=10.0)
    assert [tuple(t.shape) for t in kept] == [(N, V)]


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 30))
def test_the_bounded_losses_stay_within_their_bounds(seed, scale):
    z, r, _, y = data(seed, scale=scale)
    slack = 1e-6
    for value in (js(z, r), jensun(z, refusal(y))):
        assert value.min() >= -slack
        assert value.max() <= math.log(2) + slack
    assert (jensun(z, refusal(y), target="released") <= 1.5 * math.log(2) + slack).all()
    assert ((ihl(z, y) >= 0) & (ihl(z, y) <= 2)).all()


def test_a_target_that_is_not_there():
    z, _, _, y = data()
    with pytest.raises(ValueError, match=r"target=tokens: .* \(known: token, released\)"):
        jensun(z, refusal(y), target="tokens")  # type: ignore[arg-type]


def test_a_form_that_is_not_there():
    z, r, _, _ = data()
    with pytest.raises(ValueError, match="form=qkl"):
        proximity(z, r, form="qkl")  # type: ignore[arg-type]
