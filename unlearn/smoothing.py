"""Smoothness of the forget loss F around the weights θ (arXiv 2502.05374), as functions of its gradient.

Each function returns the gradient that replaces ∇F, and calls `gradients` once for each pass. They are pure:
the training's weights and processes are in `unlearn.training.smoothness`. Where F has no gradient, nothing is
changed. Source of the definitions: Unlearn-Smooth (fc655ba), WMDP/src/unlearn; what its code does otherwise
is in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from torch import Tensor

from unlearn.config import SmoothConfig

Vector: TypeAlias = list[Tensor]
"""A number for each trained parameter, cut into tensors in any way."""

OPTIONS = {
    "none": (), "sam": ("rho",), "random": ("sigma", "draws"), "penalty": ("weight", "mu"),
    "curvature": ("weight", "mu"), "average": ("start", "every"),
}  # fmt: skip
"""The keys of `method.smooth` that each name uses."""


class Loss(Protocol):
    """The forget loss around the weights: a sum of parts, each with a gradient of its own."""

    def gradients(self, shift: Vector | None) -> list[Vector]:
        """Return the gradient of each part at θ + shift, or at θ; the caller may change them."""

    def total(self, gradients: Sequence[Vector]) -> Vector:
        """Return a new vector: the gradient of F from those of its parts."""

    def norm(self, vector: Vector) -> float:
        """Return the Euclidean norm over all trained parameters."""


def sam(loss: Loss, rho: float) -> list[Vector]:
    """Return ∇F(θ + δ), δ = ρ·∇F/‖∇F‖: sharpness-aware minimisation. Two gradients."""
    gradients = loss.gradients(None)
    shift = loss.total(gradients)
    if not _scale(shift, rho, loss.norm(shift)):
        return gradients
    del gradients
    return loss.gradients(shift)


def random(loss: Loss, noise: Callable[[int], Vector], draws: int) -> list[Vector]:
    """Return the mean of ∇F(θ + ε_i) over the draws, `noise(i)` = ε_i ~ N(0, σ²): randomised smoothing."""
    mean = loss.gradients(noise(0))
    for draw in range(1, draws):
        for into, gradient in zip(mean, loss.gradients(noise(draw)), strict=True):
            for own, each in zip(into, gradient, strict=True):
                own.lerp_(each, 1 / (draw + 1))
    return mean


def penalty(loss: Loss, weight: float, mu: float) -> list[Vector]:
    """Return the gradient of F + λ‖∇F‖: ∇F + λ·H·v, v = ∇F/‖∇F‖, H the Hessian. Two gradients.

    H·v is the forward difference (∇F(θ + μv) − ∇F(θ))/μ, which is exact where F is quadratic.
    """
    gradients = loss.gradients(None)
    shift = loss.total(gradients)
    if not _scale(shift, mu, loss.norm(shift)):
        return gradients
    for into, moved in zip(gradients, loss.gradients(shift), strict=True):
        for own, each in zip(into, moved, strict=True):
            own.lerp_(each, weight / mu)
    return gradients


def curvature(loss: Loss, weight: float, mu: float) -> list[Vector]:
    """Return the gradient of F + λ‖∇F(θ + μv) − ∇F(θ)‖ with v = ∇F/‖∇F‖ held constant. Four gradients.

    That of the norm is (H(θ + μv) − H(θ))·u, u the direction of the difference. The products are forward
    differences along μu: (∇F(θ + μv + μu) − ∇F(θ + μv) − ∇F(θ + μu) + ∇F(θ))/μ, which is exact where F is
    cubic. There is none where F is quadratic.
    """
    gradients = loss.gradients(None)
    along = loss.total(gradients)
    if not _scale(along, mu, loss.norm(along)):
        return gradients
    change = loss.gradients(along)
    for into, gradient in zip(change, gradients, strict=True):
        for own, each in zip(into, gradient, strict=True):
            own.sub_(each)
    across = loss.total(change)
    if not _scale(across, mu, loss.norm(across)):
        return gradients
    near = loss.gradients(across)
    far = loss.gradients([one + other for one, other in zip(along, across, strict=True)])
    for into, first, second, third in zip(gradients, change, near, far, strict=True):
        for own, moved, one, both in zip(into, first, second, third, strict=True):
            own.add_(both.sub_(one).sub_(moved), alpha=weight / mu)
    return gradients


def problems(config: SmoothConfig, groups: Sequence[str]) -> list[str]:
    """Return what is wrong with `method.smooth` of a method with terms on these groups, by dotted name."""
    usual, found = SmoothConfig(), []
    for key in SmoothConfig.model_fields.keys() - {"name", *OPTIONS[config.name]}:
        if (value := getattr(config, key)) != getattr(usual, key):
            users = " or ".join(name for name, own in OPTIONS.items() if key in own)
            found.append(
                f"method.smooth.{key}={value:g}: method.smooth.name={config.name} has no option {key}; set "
                f"method.smooth.name={users}, or leave it out with '~method.smooth.{key}'"
            )
    if config.name == "average" and not groups:
        found.append("method.smooth.name=average: the method has no term, so that it trains no weights")
    if config.name in ("none", "average") or {"forget", "template"} & {*groups}:
        return sorted(found)
    return [
        *sorted(found),
        f"method.smooth.name={config.name}: smooths the forget loss, and the method has no term on "
        "method.forget or method.template; set method.smooth.name=none, or average for the weights",
    ]


def _scale(vector: Vector, length: float, norm: float) -> bool:
    """Give a vector of this norm a length; return False for one of norm 0, which has no direction."""
    if not norm > 0:
        return False
    for each in vector:
        each.mul_(length / norm)
    return True
