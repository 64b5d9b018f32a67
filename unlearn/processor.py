"""The name of the processor that a process computes on."""

from __future__ import annotations

import contextlib
import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """Return the model of the CPU, or its architecture where the system does not name it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
