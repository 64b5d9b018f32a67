"""Learn a short refusal, token by token, by a bounded divergence (arXiv 2509.02820)."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from unlearn.objectives._soft import rowwise


def jensun(
    logits: Float[Tensor, "N V"],
    refusal: Int[Tensor, "N K"],
    *,
    target: Literal["token", "released"] = "token",
) -> Float[Tensor, " N"]:
    """Jensen–Shannon divergence of the model and the refusal's token that is due at each position.

    With p the probability of that token it is ln 2 + ½[p ln p − (1 + p) ln(1 + p)], from 0 to ln 2. The slope
    on its logit is ½ p(1 − p) ln(p/(1 + p)), which vanishes with p. The authors' code (commit 9d0cfd5,
    src/trainer/utils.py) raises probabilities to 1e-9, so that nothing pulls on tokens below; here it is
    exact.

    - `target`: `token`, or `released`, the code published with the paper: a mass of 1 on every token of the
      refusal at once, which is least where they share the probability. It also averaged over prompt and
      padding (the term's `mask: all`).

    Raises:
        ValueError: `target` has another name.
    """
    if target not in ("token", "released"):
        raise ValueError(f"target={target}: no such target of jensun (known: token, released)")
    wanted = refusal[:, :1] if target == "token" else refusal
    return rowwise(logits, lambda z, rows: _divergence(z, wanted[rows]))


def _divergence(z: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    log_p = z.log_softmax(-1)
    own = log_p.gather(-1, wanted)
    p, lacking, first = own.exp(), -own.expm1(), _first(wanted)
    # The closed form around p = 1, where its terms cancel: `lacking` is 1 − p.
    cost = lacking * (math.log(2) / 2) - (1 - lacking / 2) * (-lacking / 2).log1p() + p * own / 2
    pull = first * p * (own - p.log1p()) / 2
    values = (first * cost).sum(-1) - (first.sum(-1) - 1) * (math.log(2) / 2)
    slope = log_p.exp_().mul_(-pull.sum(-1, keepdim=True))
    return values, slope.scatter_add_(-1, wanted, pull)


def _first(tokens: Tensor) -> Tensor:
    """Return 1 where a token has not been in its row before, else 0, [n, K]."""
    same = tokens[:, :, None] == tokens[:, None, :]
    return (~same.tril(-1).any(-1)).float()
