"""A model that is evaluated at ZeRO 3: each process holds its part of the parameters, and no optimizer."""

from __future__ import annotations

import unlearn.environment  # noqa: F401 (before DeepSpeed)

# isort: split
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
from torch import nn

from unlearn.config import HardwareConfig
from unlearn.distributed import World, lengthen_timeouts
from unlearn.training import engine_slices
from unlearn.training.deepspeed_config import deepspeed_config


@contextmanager
def sharded(model: nn.Module, world: World, hardware: HardwareConfig) -> Iterator[Any]:
    """Shard a model as an engine at ZeRO 3 does, and yield it; its parameters may be deferred. A collective.

    Each call of the model is a collective too.
    """
    config = deepspeed_config(hardware, clip=0.0)
    config["zero_optimization"].pop("offload_optimizer", None)
    linear = nn.functional.linear
    engine_slices.partition(model, world.device, config)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    lengthen_timeouts()
    try:
        yield engine.module
    finally:
        engine_slices.release(engine)
        nn.functional.linear = linear  # ZeRO 3 replaced it for all models of the process
