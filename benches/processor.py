"""Name the processor that a figure was measured on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # make a processor stand in for an older one


def processor() -> str:
    """Return its model, the instruction set that torch uses, and the caps of the environment."""
    caps = [f"{name}={os.environ[name]}" for name in CAPS if name in os.environ]
    return ", ".join([_model(), f"torch uses {torch.backends.cpu.get_cpu_capability()}", *caps])


def _model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
