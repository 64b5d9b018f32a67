"""Stay near the mean teacher (arXiv 2504.13388)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unlearn.objectives._soft import rowwise, soft_kl


def proximity(
    logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    form: Literal["kl", "quadratic"] = "kl",
) -> Float[Tensor, " N"]:
    """KL(teacher ‖ model) at each position, or its second-order expansion around the teacher.

    The quadratic form is half the variance of the logits' differences under q = softmax(teacher):
    ½ Σ q (Δ − Σ qΔ)². Source: the authors' loss file (`kl`, `qkl`), which averages over padding too.

    Raises:
        ValueError: `form` has another name.
    """
    match form:
        case "kl":
            return soft_kl(logits, teacher_logits)
        case "quadratic":
            teacher = teacher_logits.detach()
            return rowwise(logits, lambda z, rows: _quadratic(z, teacher[rows].float()))
    raise ValueError(f"form={form}: no such form of proximity (known: kl, quadratic)")


def _quadratic(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    q, difference = t.softmax(-1), z - t
    difference -= torch.linalg.vecdot(q, difference)[:, None]
    slope = q.mul_(difference)
    return torch.linalg.vecdot(slope, difference) / 2, slope
