"""Assign each parameter of a model to a layer, a group of layers, and a kind of module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reports read the names below without torch
    from torch import nn

GROUPS = ("embedding", "shallow", "middle", "deep", "head", "other")
KINDS = ("attention", "mlp", "norm", "embedding", "head", "other")

# By the class name of the innermost module that matches; some families have no module for their MLP.
_CLASSES = {
    "norm": "norm",
    "attention": "attention",
    "mlp": "mlp",
    "feedforward": "mlp",
    "embedding": "embedding",
}
_NAMES = {"fc1": "mlp", "fc2": "mlp", "fc_in": "mlp", "fc_out": "mlp"}


@dataclass(frozen=True)
class ParameterGroup:
    """Where a parameter is; `layer` counts blocks from 0, and is None outside of blocks."""

    group: str
    kind: str
    layer: int | None


def parameter_groups(model: Any, boundaries: Sequence[float]) -> dict[str, ParameterGroup]:
    """Return the group of each parameter of a transformers model, by name.

    `boundaries` are where the middle and the deep layers begin: shares of the depth (below 1), or numbers of
    layers. A third and two thirds are those of arXiv 2502.19301, section 4.1 (of 33: 1–11, 12–22, 23–33); the
    code released with it has 10 and 20. Norms outside of the blocks belong to the head, a head tied to the
    embedding is the embedding, and edits of the model are `other`.
    """
    named = dict(model.named_parameters())
    blocks = {name: _block(name, model) for name in named}
    depth = 1 + max((block for block in blocks.values() if block is not None), default=-1)
    starts = [boundary * depth if boundary < 1 else boundary for boundary in boundaries]
    heads = _of(model.get_output_embeddings())
    looked_up = _of(model.get_input_embeddings())
    groups = {}
    for name, parameter in named.items():
        block = blocks[name]
        kind = _kind(name, model)
        if id(parameter) in looked_up:
            own = ParameterGroup("embedding", "embedding", None)
        elif id(parameter) in heads:
            own = ParameterGroup("head", "head", None)
        elif block is not None:
            own = ParameterGroup(GROUPS[1 + sum(block >= start for start in starts)], kind, block)
        else:
            embeds = "embed" in name or kind == "embedding"
            own = ParameterGroup("embedding" if embeds else "head" if kind == "norm" else "other", kind, None)
        groups[name] = own
    return groups


def _of(module: nn.Module | None) -> set[int]:
    return set() if module is None else {id(p) for p in module.parameters()}


def _block(name: str, model: Any) -> int | None:
    """Return the number of the block that holds the parameter, None outside of blocks."""
    from torch import nn

    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            parent = model.get_submodule(".".join(parts[:position]))
            if isinstance(parent, nn.ModuleList) and len(parent) == depth:
                return int(part)
    return None


def _kind(name: str, model: nn.Module) -> str:
    parts = name.split(".")[:-1]
    for end in range(len(parts), 0, -1):
        label = type(model.get_submodule(".".join(parts[:end]))).__name__.lower()
        for part, kind in _CLASSES.items():
            if part in label:
                return kind
        if parts[end - 1] in _NAMES:
            return _NAMES[parts[end - 1]]
    return "other"
