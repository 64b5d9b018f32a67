"""Representation misdirection (arXiv 2403.03218)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._directions import Seed, random_direction


def rmu(
    hidden: Float[Tensor, "N D"],
    *,
    coefficient: float,
    seed: Seed = 0,
    direction: Literal["unit", "uniform"] = "unit",
) -> Float[Tensor, " N"]:
    """Mean squared difference of the hidden state from c·u at each position, u random and fixed by `seed`.

    u is drawn from [0, 1)^D. The official code and OpenUnlearning normalise it (`unit`); the codes of the
    G-effect and SatImp do not (`uniform`), where the same c means √(D/3) times as much.

    Raises:
        ValueError: `direction` has another name.
    """
    if direction not in ("unit", "uniform"):
        raise ValueError(f"direction={direction}: no such direction of rmu (known: unit, uniform)")
    u = random_direction(hidden, seed, unit=direction == "unit")
    return (hidden.float() - coefficient * u).square().mean(-1)
