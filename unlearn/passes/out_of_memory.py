"""Do a pass that does not fit in memory again, in portions of half the size.

The portions of a pass are set by `hardware`, which changes no number. So the result is that of the smaller
portion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from unlearn.data.batching import deal
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.garbage import free_memory
from unlearn.passes.memory_limits import Key
from unlearn.signals import StartAgain

T = TypeVar("T")
Bins: TypeAlias = list[list[list[int]]]
"""Positions of sequences by process and forward, as `deal` returns them."""

log = logging.getLogger(__name__)

_SAID = (
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory: you tried to allocate",  # the same on other systems
    "std::bad_alloc",
    "Cannot allocate memory",  # of the system
    "CUDA out of memory",
    "CUDA error: out of memory",
    "failure 2 'out of memory'",  # of NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
ADVICE = (
    "hardware.activation_checkpointing=true, hardware.zero=3 on several processes, "
    "hardware.offload=true on a GPU, model.lora.r=16, hardware.dtype=bf16, smaller hardware.micro_tokens and "
    "hardware.eval_tokens, a smaller dataset.max_length"
)


class DoesNotFit(BaseException):
    """One sequence alone does not fit on this process, in a pass that has collectives.

    Not an error to catch: the other processes may wait in the pass, so nothing else can follow on this one.
    `execute` ends the run with its message, as a `UserError`.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation has failed, on a GPU or the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def no_room(error: BaseException) -> str | None:
    """Return what to tell the user of an error if it is one of memory that ran out, None if not."""
    if isinstance(error, DoesNotFit):
        return str(error)
    first = str(error).partition("\n")[0]
    return f"out of memory ({first}); what takes less: {ADVICE}" if is_out_of_memory(error) else None


def warning(fitting: dict[str, Any]) -> str:
    """Return what to tell the user of the portions that fit."""
    keys = " ".join(f"hardware.{key}={value}" for key, value in fitting.items())
    return f"out of memory: continuing with {keys}, which changes no number; set it to begin with it"


def in_portions(
    world: World, key: Key, configured: int, lengths: Sequence[int], compute: Callable[[Bins], T], *,
    factor: int = 1, collective: bool = False, alike: bool = False,
    discard: Callable[[], None] = lambda: None,
) -> T:  # fmt: skip
    """Return `compute(bins)`; where it does not fit in memory, halve the portion and compute again.

    The bins deal sequences of these lengths to the processes and their forwards. `hardware.key=configured`
    bounds each: in tokens, padding included, or in `factor` times so many sequences. A collective.

    alike: deal all of them to one process, so that the forwards, and the last bits of what they compute, do
        not depend on the number of processes; these share out the forwards themselves.
    collective: whether `compute` has collectives. If not, all processes do it again if it fails on one.
    discard: called on every process before it is done again, to forget what `compute` has changed.

    Raises:
        UserError: one sequence alone does not fit; without collectives, on every process.
        DoesNotFit: one sequence alone does not fit on this process, and it has collectives.
        StartAgain: it failed on this process, and it has collectives.
    """
    lowered = False
    while True:
        portion = world.limits.portion(key, configured)
        rows = key in ("micro_batch", "generate_rows")
        bins = deal(
            lengths, 1 if alike else world.size, max_tokens=None if rows else portion,
            max_rows=portion * factor if rows else None,
        )  # fmt: skip
        results = _attempt(compute, bins, world)
        failed = not results
        if not collective and world.size > 1:
            failed = bool(world.sum(torch.tensor(float(failed), device=world.device)))
        if not failed:
            if lowered and world.main:
                log.warning("%s", warning({key: portion}))
            return results[0]
        results.clear()
        sizes = [len(part) if rows else len(part) * max(lengths[i] for i in part) for part in _parts(bins)]
        smallest = factor if rows else max(lengths, default=0)
        if max(sizes, default=0) <= smallest:
            what = f"a sequence of {smallest} tokens"
            if rows:
                what = "a sequence" if factor == 1 else f"{factor} sequences"
            advice = f"hardware.micro_batch=null, {ADVICE}" if key == "micro_batch" else ADVICE
            message = f"out of memory: one forward of {what} does not fit; what takes less: {advice}"
            raise DoesNotFit(message) if collective else UserError(message)
        world.limits.fitting[key] = max(max(sizes) // 2, smallest) // factor
        if collective:
            world.limits.restarts += 1
        if collective or world.main:
            world.limits.save(world.limits.fitting, world.limits.restarts)
        if collective:
            raise StartAgain(warning({key: world.limits.fitting[key]}))
        discard()
        lowered = True


def _attempt(compute: Callable[[Bins], T], bins: Bins, world: World) -> list[T]:
    """Return the result of a pass in a list; an empty one if it is out of memory, which is freed."""
    try:
        return [compute(bins)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.info("%s", str(error).partition("\n")[0])
    # The error has let go of its frames, and so of the tensors of the pass.
    free_memory()
    return []


def _parts(bins: Bins) -> list[list[int]]:
    return [part for each in bins for part in each if part]
