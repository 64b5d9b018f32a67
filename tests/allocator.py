"""A real limit of the CPU's allocator, and modules that take much of it without touching it.

Memory that is allocated and never written costs the machine nothing, but the system counts it.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.rows import rows_in_pass

MIB = 1 << 20


@contextmanager
def room(mib: float) -> Iterator[None]:
    """Let this process allocate so many MiB more than it has now, and no more (Linux)."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if "VmData" in each]
    before = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(line.split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (taken + int(mib * MIB), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class _Hungry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, mib: float, rows: int, backward: bool) -> Tensor:
        ctx.mib = mib * rows
        if not backward:
            take(ctx.mib)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        take(ctx.mib)
        return grads[0], None, None, None


def take(mib: float) -> None:
    """Allocate so many MiB, and free them."""
    torch.empty(int(mib * MIB), dtype=torch.uint8)


def make_hungry(model: Any, mib: float) -> None:
    """Let every pass of a model allocate so many MiB for each row: in the backward, where there is one.

    It does so at the embeddings, where a backward has the gradients of all other parameters.
    """

    def hook(_: Any, __: Any, out: Tensor) -> Tensor:
        hungry: Tensor = _Hungry.apply(out, mib, rows_in_pass() or len(out), out.requires_grad)
        return hungry

    model.get_input_embeddings().register_forward_hook(hook)
