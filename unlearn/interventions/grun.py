"""Gated representation edits (GRUN, arXiv 2502.17823): the model is frozen, low-rank edits are trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unlearn.config import Section
from unlearn.errors import ConfigError
from unlearn.interventions._base import Intervention, blocks, checked_layer, edited, hidden_of, seeded


class GrunOptions(Section):
    """`method.intervention` with `name: grun`."""

    layers: list[int] | None = Field(
        None, description="blocks to edit, from 0; null: as deep as 20, 25 and 31 of 32", min_length=1
    )
    rank: PositiveInt = Field(4, description="dimensions of the edited subspace")
    gate: Literal["linear", "mlp"] = Field("mlp", description="what decides whether a prompt is edited")
    width: PositiveInt = Field(256, description="first hidden layer of the mlp gate")
    width2: PositiveInt = Field(64, description="second hidden layer of the mlp gate")
    prompt_share: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="share of a plain text, which has no question, that is its prompt in training",
    )


def default_layers(layers: int) -> list[int]:
    """Return the blocks at the relative depth of 20, 25 and 31 of 32 (counted from 0)."""
    return sorted({-(-(block + 1) * layers // 32) - 1 for block in (20, 25, 31)})


def orthonormal(raw: Tensor) -> Tensor:
    """Make the rows of [r, D] orthonormal, one after the other; fp32, the identity on orthonormal rows."""
    q, r = torch.linalg.qr(raw.float().T)
    # The factorisation is unique with a positive diagonal: no sign changes between steps.
    signs: Tensor = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return (q * signs).T


class Edit(nn.Module):
    """h + σ(g(h))·Rᵀ(Wh + b − Rh), R with orthonormal rows.

    W starts as R and b as 0, so that a new edit changes nothing (exactly in fp32; W is rounded to the model's
    dtype); the authors' code draws both. At first only the gate and the direction of W have a gradient.
    """

    def __init__(self, hidden_size: int, options: GrunOptions, draws: torch.Generator) -> None:
        super().__init__()
        rows = orthonormal(torch.randn(options.rank, hidden_size, generator=draws))
        self.rotation = nn.Parameter(rows)
        self.weight = nn.Parameter(orthonormal(rows).clone())
        self.bias = nn.Parameter(torch.zeros(options.rank))
        between = (options.width, options.width2) if options.gate == "mlp" else ()
        self.gate = _perceptron((hidden_size, *between, 1), draws)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Edited states [B, D] and gate logits [B], fp32, from states [B, D]."""
        gate = self.gate(hidden.to(self.weight.dtype)).float()
        rows, h = orthonormal(self.rotation), hidden.float()
        change = h @ (self.weight.float() - rows).T + self.bias.float()
        return (h + gate.sigmoid() * (change @ rows)).to(hidden.dtype), gate[:, 0]


class Grun(Intervention):
    """Edit the last prompt token's hidden state after some blocks.

    Of several that are attached one after the other, each is trained alone, on top of the earlier ones.
    """

    Options = GrunOptions
    trains = True
    gated = True

    @classmethod
    def prompt_share(cls, options: GrunOptions) -> float:
        return options.prompt_share

    def __init__(self, options: GrunOptions, *, hidden_size: int, layers: int, seed: int = 0) -> None:
        """
        Raises:
            ConfigError: a layer that the model does not have, or a rank above its width.
        """
        super().__init__(options)
        chosen = sorted(set(default_layers(layers) if options.layers is None else options.layers))
        layer_problems = [checked_layer(layer, layers, "layers") for layer in chosen]
        if options.rank > hidden_size:
            layer_problems.append(
                f"method.intervention.rank={options.rank}: the model's width is {hidden_size}"
            )
        if problems := [problem for problem in layer_problems if problem]:
            raise ConfigError(problems)
        self.layers: Sequence[int] = chosen
        draws = seeded(seed)
        self.edits = nn.ModuleList(Edit(hidden_size, options, draws) for _ in chosen)
        self._gates: dict[int, Tensor] = {}

    def hooks(self, model: Any) -> list[RemovableHandle]:
        layers_of_model = blocks(model)
        return [
            layers_of_model[layer].register_forward_hook(partial(self._edit, place))
            for place, layer in enumerate(self.layers)
        ]

    def begin(self) -> None:
        assert self.current is not None
        if not self.current.past_prompts:
            self._gates = {}

    def between_passes(self) -> dict[str, Any]:
        return {**super().between_passes(), "_gates": {}}

    def parts(self) -> dict[str, str]:
        return {f"edits.{place}.": f"the edit of block {layer}" for place, layer in enumerate(self.layers)}

    def gates(self) -> Tensor:
        """Return gate logits [B, K] of the last pass over prompts, one column per layer; differentiable."""
        if len(self._gates) != len(self.layers):
            raise RuntimeError("there are no gates before the model was called")
        return torch.stack([self._gates[place] for place in range(len(self.layers))], dim=1)

    def _edit(self, place: int, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        assert self.current is not None
        if self.current.past_prompts:
            return output
        hidden = hidden_of(output)
        rows = torch.arange(len(hidden), device=hidden.device)
        at = self.current.prompt_end
        within = (at >= 0) & (at < hidden.shape[1])  # a prompt may be processed in pieces
        at = at.clamp(0, hidden.shape[1] - 1)
        before = hidden[rows, at]
        after, self._gates[place] = self.edits[place](before)
        return edited(output, hidden.index_put((rows, at), torch.where(within[:, None], after, before)))


def _perceptron(widths: Sequence[int], draws: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, width, following)
        bound = width**-0.5
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=draws)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
