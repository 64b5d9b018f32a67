"""Decide `auto` of `hardware` from the estimate and the memory at hand, once, before the processes start."""

from __future__ import annotations

from typing import Any

import psutil

from launch.memory.estimate import GIB, Load, Memory, Shape, bound, estimate, shape_of, with_unit
from unlearn.config import HardwareConfig, RunConfig

USABLE = 0.9
"""The share of a GPU's memory that tensors can use; CUDA, fragmentation and kernels take the rest."""
CARD = 80.0
"""The card in GiB that is assumed where there is none: in dry runs, and for tables."""


def fits(memory: Memory, card_gib: float) -> bool:
    """Return whether a process fits on a GPU of this size."""
    return memory.device <= USABLE * card_gib * GIB


def settle(
    config: RunConfig, card_gib: float | None = None, known: tuple[Shape, Load] | None = None
) -> tuple[RunConfig, str]:
    """Return the configuration with what is `auto` decided, and why, in a line; "" where nothing is.

    Activation checkpointing is on where the largest possible micro-batch does not fit without it, or where
    the model's size is not known. `card_gib`: of one GPU; None: of those of this machine. `known`: the
    model's shape and the micro-batch, instead of those of the configuration.
    """
    if config.hardware.activation_checkpointing != "auto":
        return config, ""
    plain = _with(config, activation_checkpointing=False)
    if not config.method.sets:
        return plain, ""
    card = card_gib or _memory_gib(config.hardware)
    shape, load = known or (shape_of(config), bound(config))
    if shape is None:
        why = "the model's config.json is not on this machine"
    else:
        memory = estimate(shape, plain, load)
        why = f"{with_unit(memory.device)} of {card:.0f} GiB without it"
        if fits(memory, card):
            return plain, f"hardware.activation_checkpointing=auto: off ({why})"
    made = _with(config, activation_checkpointing=True)
    return made, f"hardware.activation_checkpointing=auto: on ({why})"


def _with(config: RunConfig, **keys: Any) -> RunConfig:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=keys)})


def _memory_gib(hardware: HardwareConfig) -> float:
    """Return the memory of a process in GiB: of this machine's smallest GPU, or its share of the host's."""
    if hardware.device == "cpu":
        return psutil.virtual_memory().total / GIB * hardware.nodes / hardware.processes
    import torch

    cards = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(cards) / GIB if cards else CARD
