"""Decide what is `auto` in `hardware` from the memory estimate, before a training begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import torch

from launch.memory.estimate import (
    GIB,
    Load,
    Memory,
    Shape,
    bound,
    captured,
    estimate,
    shape_of,
)
from unlearn.config import HardwareConfig, RunConfig
from unlearn.distributed import World
from unlearn.garbage import free_memory
from unlearn.run_dir import RunDir

USABLE = 0.9
"""The share of a GPU's memory that tensors can use; CUDA, fragmentation and kernels take the rest."""
CARD = 80.0
"""GiB of the GPU that is assumed where none can be asked."""
_KEYS = ("micro_tokens", "activation_checkpointing")
_MOST = {"cuda": 32768, "cpu": 1024}  # tokens: more makes a step no faster, as padding grows
_ENOUGH = 4096  # tokens on a GPU: smaller forwards cost more than to recompute activations; on a CPU none do
_LEAST = 512  # about one sequence
_UNKNOWN = 1024  # tokens of a model whose size is not known


def fits(memory: Memory, card_gib: float) -> bool:
    """Return whether a process fits on a GPU of this size."""
    return memory.device <= USABLE * card_gib * GIB


def decide(
    shape: Shape, config: RunConfig, gib: float, load_of: Callable[[RunConfig], Load] = bound
) -> RunConfig:
    """Return the configuration with values for `auto` with which a process fits in `gib`.

    `micro_tokens` is the largest power of two that fits, and the smallest where none does. Activations are
    recomputed where it would otherwise be small, or where a number of `micro_tokens` would not fit. `load_of`
    returns the largest micro-batch of a configuration.
    """
    hardware = config.hardware
    chosen = hardware.activation_checkpointing
    recomputes = [False, True] if chosen == "auto" else [chosen]
    if hardware.micro_tokens == "auto":
        powers = range(_MOST[hardware.device].bit_length() - 1, _LEAST.bit_length() - 2, -1)
        sizes, enough = [1 << power for power in powers], _ENOUGH if hardware.device == "cuda" else 0
    else:
        sizes, enough = [hardware.micro_tokens], 0
    made = config
    for recompute in recomputes:
        for size in sizes:
            made = _with(config, activation_checkpointing=recompute, micro_tokens=size)
            if _fits(estimate(shape, made, load_of(made)), gib, hardware):
                if recompute is recomputes[-1] or made.hardware.tokens >= enough:
                    return made
                break
    return made


def gradient_tokens(shape: Shape, config: RunConfig, gib: float) -> int:
    """Return the portion of an evaluation's passes with a backward: that of the training, or less."""
    hardware, tokens = config.hardware, config.hardware.tokens
    training = estimate(shape, config, bound(config))
    while tokens > _LEAST:
        load = Load(tokens, min(tokens, config.dataset.max_length), tokens)
        memory = replace(training, activations=captured(shape, hardware, load), peak=0.0)
        if _fits(memory, gib, hardware):
            break
        tokens = max(tokens // 2, _LEAST)
    return tokens


def settle(config: RunConfig, gib: float) -> tuple[RunConfig, str]:
    """Return the configuration with `decide`'s values, and a line on them.

    `gradient_tokens` is set as well, if it is null. The line is "" where nothing is `auto` or nothing is
    trained.
    """
    keys = [key for key in _KEYS if _is_auto(config, key)]
    if not keys:
        return config, ""
    shape = shape_of(config) if config.method.sets else None
    if shape is not None:
        made, why = decide(shape, config, gib), f"by the estimate for {gib:.0f} GiB"
        if config.hardware.gradient_tokens is None:
            made = _with(made, gradient_tokens=gradient_tokens(shape, made, gib))
    else:
        recompute = bool(config.method.sets) and config.hardware.activation_checkpointing
        tokens = _UNKNOWN if _is_auto(config, "micro_tokens") else config.hardware.micro_tokens
        made = _with(config, activation_checkpointing=bool(recompute), micro_tokens=tokens)
        why = "the model's config.json is not on this machine"
    values = " ".join(f"hardware.{key}={str(getattr(made.hardware, key)).lower()}" for key in keys)
    return made, f"{values} ({why})" if config.method.sets else ""


def free_gib(config: RunConfig) -> float:
    """Return the GiB that are free for a process: of its GPU, or its share of the host's memory."""
    hardware = config.hardware
    if hardware.device == "cpu":
        return psutil.virtual_memory().available / GIB * hardware.nodes / hardware.processes
    if not torch.cuda.is_available():
        return CARD
    free_memory()  # what earlier runs in this process left to torch is free for this one
    free, total = torch.cuda.mem_get_info()
    return min(free, total / hardware.jobs_per_gpu) / GIB


def limit_to_share(hardware: HardwareConfig) -> None:
    """Let this process take its share of a GPU that it has in common with other jobs, and no more.

    Otherwise one job, in evaluation for example, would take what the estimates of the others count on. To be
    called when the process's device is set.
    """
    if hardware.device == "cuda" and hardware.jobs_per_gpu > 1:
        torch.cuda.set_per_process_memory_fraction(USABLE / hardware.jobs_per_gpu)


def agreed(config: RunConfig, world: World, rundir: RunDir) -> tuple[RunConfig, str]:
    """Return what `settle` gives, the same on every process: what fits on all of them. A collective.

    A run that goes on from a checkpoint keeps what was decided when it began.
    """
    hardware = config.hardware
    if not any(_is_auto(config, key) for key in _KEYS):
        return config, ""
    least = min(world.gather([free_gib(config)]))
    if known := world.on_main(lambda: rundir.read_decided(hardware)):
        return _with(config, **known), ""
    made, why = settle(config, least)
    if why and world.main:
        rundir.write_decided(
            hardware, {key: getattr(made.hardware, key) for key in (*_KEYS, "gradient_tokens")}
        )
    return made, why


def _fits(memory: Memory, gib: float, hardware: HardwareConfig) -> bool:
    in_host = memory.host if hardware.device == "cpu" else 0.0
    return memory.device + in_host <= USABLE * gib * GIB


def _is_auto(config: RunConfig, key: str) -> bool:
    return getattr(config.hardware, key) == "auto"


def _with(config: RunConfig, **keys: Any) -> RunConfig:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=keys)})
