"""`hardware.micro_tokens=auto`: the largest portion whose estimated memory fits."""

from __future__ import annotations

import psutil
import torch

from launch.memory.estimate import GIB, Load, Memory, Shape, estimate, shape_of
from unlearn.config import RunConfig
from unlearn.distributed import World

USABLE = 0.9
"""The share of a GPU's memory that tensors can use; CUDA, fragmentation and kernels take the rest."""
CARD = 80.0
"""GiB of the GPU that is assumed where none can be asked."""
_MOST = {"cuda": 32768, "cpu": 1024}  # more makes a step no faster: padding grows
_LEAST = 512  # about one sequence


def fits(memory: Memory, card_gib: float) -> bool:
    """Return whether a process fits on a GPU of this size."""
    return memory.device <= USABLE * card_gib * GIB


def most_tokens(shape: Shape, config: RunConfig, gib: float) -> int:
    """Return the `hardware.micro_tokens` with which a process takes at most nine tenths of `gib`.

    It is a power of two, the smallest one where nothing fits. All tokens count as answers.
    """
    hardware = config.hardware
    tokens = _MOST[hardware.device]
    while tokens > _LEAST:
        memory = estimate(shape, config, Load(tokens, min(config.dataset.max_length, tokens), tokens))
        taken = memory.device + (memory.host if hardware.device == "cpu" else 0.0)
        if taken <= USABLE * gib * GIB:
            break
        tokens //= 2
    return tokens


def with_micro_tokens(config: RunConfig, gib: float) -> RunConfig:
    """Return the configuration with `most_tokens` instead of `hardware.micro_tokens=auto`.

    Where the model's shape is not known the number is a small one.
    """
    if config.hardware.micro_tokens != "auto":
        return config
    shape = shape_of(config)
    return with_tokens(config, 1024 if shape is None else most_tokens(shape, config, gib))


def with_tokens(config: RunConfig, tokens: int) -> RunConfig:
    """Return the configuration with these `hardware.micro_tokens`."""
    hardware = config.hardware.model_copy(update={"micro_tokens": tokens})
    return config.model_copy(update={"hardware": hardware})


def free_gib(config: RunConfig) -> float:
    """Return the GiB that are free for a process: of its GPU, or its share of the host's memory."""
    hardware = config.hardware
    if hardware.device == "cpu":
        return psutil.virtual_memory().available / GIB * hardware.nodes / hardware.processes
    return torch.cuda.mem_get_info()[0] / GIB if torch.cuda.is_available() else CARD


def agreed(config: RunConfig, world: World) -> RunConfig:
    """Return the configuration with the number that fits on every process. A collective."""
    own = with_micro_tokens(config, free_gib(config)).hardware.tokens
    return with_tokens(config, min(world.gather([own])))
