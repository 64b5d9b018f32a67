"""Adaptive representation misdirection (arXiv 2408.06223)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._directions import Seed, random_direction


def rmu_adaptive(
    hidden: Float[Tensor, "N D"], ref_hidden: Float[Tensor, "N D"], *, scale: float, seed: Seed = 0
) -> Float[Tensor, " N"]:
    """RMU with a coefficient that adapts to the layer: c = scale·‖h_ref‖ of each token, ‖u‖ = 1.

    Mean squared difference of the hidden state from c·u. One `scale` (5) serves all layers, however large
    their hidden states are; RMU's c must be chosen for each layer. The authors' code has one c for each
    topic, from the mean length of its first batch.
    """
    u = random_direction(hidden, seed, unit=True)
    length = ref_hidden.detach().float().norm(dim=-1, keepdim=True)
    return (hidden.float() - scale * length * u).square().mean(-1)
