"""Gradient rectified unlearning (arXiv 2503.09117, GRU)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from unlearn.rules import Remembering


class Gru(Remembering):
    """Take from the forget gradient f what opposes the averaged retain gradient m.

    m_t = γ·r_t + (1 − γ)·m_{t−1}, m_0 = 0, of the retain gradients r_t; γ weighs the new one. Where
    ⟨f, m⟩ < 0 the update is f − (⟨f, m⟩/⟨m, m⟩)·m, elsewhere f itself, with one inner product over all
    trained parameters. The retain gradient only constrains: it is not added. Several terms on one side are
    summed with their weights. Clipping comes after. AdamW bends the update, so that the weights do not move
    exactly orthogonally to m.

    Source: OpenUnlearning pull request 83, src/trainer/unlearn/gru.py; the authors' code, tmlr-group/GRU,
    has `retain_weight` 1 and more in its `_gru+ce` and `_gru+KL`, and `cos_clip`.

    Each term costs one backward pass over its own data. Until the step, one more fp32 gradient per term is
    kept, and m from step to step: of the whole model at ZeRO 0, of this process's partition from ZeRO 1 on.

    - `gamma`: γ, between 0 and 1; 1 averages nothing and keeps no gradient.
    - `retain_weight`: so much of the step's own retain gradient is added after the projection. With 0 the
      length of m does not count, and a constant `method.retain_weight` changes nothing.
    - `cos_clip`: a conflict counts as no stronger than this cosine of f and m, such as −0.5; null: as it is.
    """

    terms = ("forget|template", "retain")

    def __init__(
        self, *, gamma: Annotated[float, Field(gt=0, le=1)] = 0.8,
        retain_weight: Annotated[float, Field(ge=0)] = 0.0,
        cos_clip: Annotated[float, Field(ge=-1, le=0)] | None = None,
    ) -> None:  # fmt: skip
        self.gamma, self.retain_weight, self.cos_clip = gamma, retain_weight, cos_clip
        self.keeps = gamma < 1
        self._cosine = float("nan")

    def project(self, gram: Tensor, sets: Sequence[str]) -> tuple[Tensor, Tensor]:
        forget = gram.new_tensor([*(float(name == "forget") for name in sets), 0.0])
        retain = gram.new_tensor([*(float(name != "forget") for name in sets), 0.0])
        mean = self.gamma * retain
        mean[-1] = 1 - self.gamma
        dot, square = float(forget @ gram @ mean), float(mean @ gram @ mean)
        length = math.sqrt(max(float(forget @ gram @ forget), 0.0))
        self._cosine = dot / (length * math.sqrt(square)) if length > 0 and square > 0 else 0.0
        factor = dot / square if self._cosine < 0 else 0.0
        if self.cos_clip is not None and self._cosine < self.cos_clip:
            factor = self.cos_clip * length / math.sqrt(square)
        return forget + self.retain_weight * retain - factor * mean, mean

    def log(self) -> dict[str, float]:
        return {"rule/cosine": self._cosine}
