"""Smoothed gradients: by hand on losses with known derivatives, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn import smoothing
from unlearn.config import MethodConfig
from unlearn.errors import ConfigError
from unlearn.smoothing import Vector
from unlearn.terms import bind

AT = torch.tensor([1.0, 1.0], dtype=torch.float64)


def quadratic(w: Tensor) -> Tensor:
    return 0.5 * (w[0] ** 2 + 4 * w[1] ** 2)


def cubic(w: Tensor) -> Tensor:
    return (w[0] ** 3 + 2 * w[1] ** 3 + w[0] * w[1] ** 2) / 6


@dataclass
class Plain:
    """A loss of two weights at (1, 1), by autograd in float64; `parts` of it have gradients of their own."""

    parts: Sequence[Callable[[Tensor], Tensor]] = (quadratic,)
    factors: Sequence[float] = (1.0,)
    seen: list[Tensor] = field(default_factory=list)

    def gradients(self, shift: Vector | None) -> list[Vector]:
        self.seen.append(AT if shift is None else AT + torch.stack([each.squeeze() for each in shift]))
        return [list(torch.func.grad(part)(self.seen[-1]).unsqueeze(1).clone()) for part in self.parts]

    def total(self, gradients: Sequence[Vector]) -> Vector:
        pairs = zip(*gradients, strict=True)
        return [sum(f * e for f, e in zip(self.factors, each, strict=True)) for each in pairs]

    def norm(self, vector: Vector) -> float:
        return float(torch.cat(vector).norm())


def flat(gradients: list[Vector]) -> list[float]:
    (only,) = gradients
    return torch.cat(only).tolist()


def test_sam_by_hand() -> None:
    loss = Plain()
    assert flat(smoothing.sam(loss, 0.1)) == pytest.approx([1.0242536, 4.3880570], abs=5e-8)
    assert (loss.seen[1] - AT).tolist() == pytest.approx([0.0242536, 0.0970143], abs=5e-8)


def test_the_penalty_adds_the_gradient_of_the_norm() -> None:
    plain = AT.new_tensor(flat(Plain().gradients(None)))
    found = AT.new_tensor(flat(smoothing.penalty(Plain(), 3.0, 0.01)))
    assert ((found - plain) / 3).tolist() == pytest.approx([0.2425356, 3.8805700], abs=5e-8)
    assert float(((found - plain) / 3).norm()) == pytest.approx(3.8881419, abs=5e-8)  # ‖Hv‖


def test_the_curvature_of_a_quadratic_has_no_gradient() -> None:
    plain = flat(Plain().gradients(None))
    assert flat(smoothing.curvature(Plain(), 10.0, 0.01)) == pytest.approx(plain, abs=1e-9)


def test_the_curvature_of_a_cubic_against_autograd() -> None:
    mu, factor = 0.01, 7.0
    gradient = torch.func.grad(cubic)
    along = gradient(AT) / gradient(AT).norm()
    wanted = gradient(AT) + factor * torch.func.grad(
        lambda w: (gradient(w + mu * along) - gradient(w)).norm()
    )(AT)
    assert float((wanted - gradient(AT)).norm()) > 0.05
    assert flat(smoothing.curvature(Plain((cubic,)), factor, mu)) == pytest.approx(wanted.tolist(), rel=1e-7)


def test_random_is_the_mean_over_the_draws() -> None:
    shifts = [[0.1, 0.0], [0.0, -0.2], [0.3, 0.1]]
    loss = Plain((cubic,))
    found = smoothing.random(loss, lambda i: [torch.tensor([s], dtype=AT.dtype) for s in shifts[i]], 3)
    points = [AT + torch.tensor(s, dtype=AT.dtype) for s in shifts]
    wanted = torch.stack([torch.func.grad(cubic)(p) for p in points]).mean(0)
    assert flat(found) == pytest.approx(wanted.tolist(), rel=1e-12)


def test_the_parts_share_the_perturbation_of_their_weighted_sum() -> None:
    whole = smoothing.sam(Plain((lambda w: 2 * quadratic(w) - 0.5 * cubic(w),)), 0.1)
    parts = Plain((quadratic, cubic), (2.0, -0.5))
    found = parts.total(smoothing.sam(parts, 0.1))
    assert torch.cat(found).tolist() == pytest.approx(flat(whole), rel=1e-12)
    for smooth in (smoothing.penalty, smoothing.curvature):
        whole = smooth(Plain((lambda w: 2 * quadratic(w) - 0.5 * cubic(w),)), 3.0, 0.01)
        assert torch.cat(parts.total(smooth(parts, 3.0, 0.01))).tolist() == pytest.approx(
            flat(whole), rel=1e-8
        )


NONE: dict[str, Callable[[Plain], list[Vector]]] = {
    "sam": lambda loss: smoothing.sam(loss, 0.0),
    "random": lambda loss: smoothing.random(loss, lambda i: [torch.zeros(1, dtype=AT.dtype)] * 2, 3),
    "penalty": lambda loss: smoothing.penalty(loss, 0.0, 0.01),
    "curvature": lambda loss: smoothing.curvature(loss, 0.0, 0.01),
}


@pytest.mark.parametrize("name", NONE)
def test_without_a_perturbation_or_a_factor_it_is_the_plain_gradient_exactly(name: str) -> None:
    assert flat(NONE[name](Plain((cubic,)))) == flat(Plain((cubic,)).gradients(None))


def test_where_there_is_no_gradient_nothing_is_changed() -> None:
    level = Plain((lambda w: 0.0 * w.sum(),))
    for found in (
        smoothing.sam(level, 0.1),
        smoothing.penalty(level, 1, 0.1),
        smoothing.curvature(level, 1, 0.1),
    ):
        assert flat(found) == [0, 0]


def problems(**keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        bind(MethodConfig(name="x", **keys))
    return caught.value.problems


def test_refused_with_place_and_fix() -> None:
    assert problems(retain="nll", smooth={"name": "sam"}) == [
        "method.smooth.name=sam: smooths the forget loss, and the method has no term on method.forget or "
        "method.template; set method.smooth.name=none, or average for the weights"
    ]
    assert problems(forget="ascent", smooth={"name": "random", "rho": 0.5}) == [
        "method.smooth.rho=0.5: method.smooth.name=random has no option rho; set method.smooth.name=sam, or "
        "leave it out with '~method.smooth.rho'"
    ]
    assert problems(forget="ascent", smooth={"mu": 0.5})[0].startswith(
        "method.smooth.mu=0.5: method.smooth.name=none has no option mu; set "
        "method.smooth.name=penalty or curvature"
    )
    assert problems(smooth={"name": "average"}) == [
        "method.smooth.name=average: the method has no term, so that it trains no weights"
    ]
    assert bind(MethodConfig(name="x", retain="nll", smooth={"name": "average"}))
    assert bind(MethodConfig(name="x", template="nll", smooth={"name": "sam"}))
