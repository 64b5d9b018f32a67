"""f-divergences between two answer probabilities, which FLAT minimises (arXiv 2410.11143).

L = −g*(P_e) + f*(g*(P_f)), P_e of the template answer and P_f of the answer to forget: L falls as P_e rises
and as P_f falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

Divergence = Literal[
    "kl",
    "jensen_shannon",
    "pearson",
    "total_variation",
    "jeffrey",
    "reverse_kl",
    "squared_hellinger",
    "neyman",
]

# Each as (g*, f*∘g*). The paper has the first four, the released code all. There the exponents of reverse_kl
# and squared_hellinger have the wrong sign, which raises P_f and lowers P_e; here the sign is right.
_TABLE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "kl": (lambda v: v, lambda v: (v - 1).exp()),
    "jensen_shannon": (lambda v: math.log(2) - softplus(-v), lambda v: v + softplus(-v) - math.log(2)),
    "pearson": (lambda v: v, lambda v: v.square() / 4 + v),
    "total_variation": (lambda v: v.tanh() / 2, lambda v: v.tanh() / 2),
    "jeffrey": (lambda v: v, lambda v: v + v.square() / 4 + v.pow(3) / 16),  # series of f*
    "reverse_kl": (lambda v: -(-v).exp(), lambda v: v - 1),
    "squared_hellinger": (lambda v: -(-v).expm1(), lambda v: v.expm1()),
    # As in the code, experimental: lowers P_e as well. 1e-6 keeps the slope at P_f = 1 finite.
    "neyman": (lambda v: -v.expm1(), lambda v: 2 - 2 * (1 - v + 1e-6).sqrt()),
}


def divergence_loss(name: Divergence, template: Tensor, forget: Tensor) -> Tensor:
    """Return L of P_e = `template` and P_f = `forget`, elementwise.

    Raises:
        ValueError: the divergence has no such name.
    """
    if name not in _TABLE:
        raise ValueError(f"divergence={name}: no such divergence (known: {', '.join(_TABLE)})")
    conjugate, composed = _TABLE[name]
    return composed(forget) - conjugate(template)


def divergence_slopes(name: Divergence, template: Tensor, forget: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∂L/∂P_e and ∂L/∂P_f, elementwise and without a gradient."""
    with torch.enable_grad():
        template, forget = template.detach().requires_grad_(), forget.detach().requires_grad_()
        loss = divergence_loss(name, template, forget).sum()
        by_template, by_forget = torch.autograd.grad(loss, (template, forget))
    return by_template, by_forget


def answer_probability(
    logp: Float[Tensor, " N"], lengths: Int[Tensor, " B"], padded: int
) -> Float[Tensor, " B"]:
    """Return the mean token probability [B] of each answer; with `padded`, the sum divided by that."""
    total = torch.segment_reduce(logp.exp(), "sum", lengths=lengths)
    return total / (padded or lengths.clamp(min=1))
