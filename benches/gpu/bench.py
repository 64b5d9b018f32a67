"""The machine that is checked, and how a measurement is timed and recorded."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any

import torch

from benches.gpu.models import LONG, make_model, shape_of
from benches.workshop import Workshop
from launch.memory.automatic import CARD, decide
from launch.memory.command import composed
from launch.memory.estimate import GIB, Load
from unlearn.config import HardwareConfig, RunConfig
from unlearn.garbage import free_memory
from unlearn.passes import product_times
from unlearn.training.engine import precision

Row = dict[str, Any]
"""What was measured, by column."""
PEAKS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "H20": 148, "B200": 2250,
    "GH200": 989, "A100": 312, "A800": 312, "H800": 989, "L40S": 362, "L40": 181,
    "L4": 121, "A10G": 70, "A10": 125, "A40": 150, "A30": 165, "RTX A6000": 155,
    "RTX 6000 Ada": 364, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""Dense bf16 TFLOP/s with fp32 sums by a part of the card's name, from NVIDIA's data sheets."""


@dataclass(frozen=True)
class Bench:
    """What to measure: a model of `SHAPES` on a device.

    - `folder`: for temporary files.
    - `deadline`: when the part should end, by `time.monotonic`.
    - `peak`: operations a second that the card can make; None on the CPU.
    - `card_gib`: the card's memory.
    """

    model: str
    device: str
    folder: Path
    deadline: float
    peak: float | None = None
    card_gib: float | None = None

    @property
    def small(self) -> bool:
        """Whether this is only a trial of the check itself."""
        return self.model == "tiny"

    @property
    def left(self) -> float:
        """Seconds until this part should end."""
        return self.deadline - time.monotonic()

    def on(self, machine: Row) -> Bench:
        """Return the same for a machine with these facts."""
        peak = machine["peak TFLOP/s"] or machine["measured peak TFLOP/s"]
        return replace(
            self, peak=1e12 * peak if self.device == "cuda" else None, card_gib=machine.get("card GiB")
        )

    def hardware(self, method: str = "npo", **changes: Any) -> HardwareConfig:
        """Return the settings of one process on this device; what is `auto` is decided for the method."""
        preset = "gpu" if self.device == "cuda" else "cpu"
        config = composed(f"method={method}", f"hardware={preset}", "dry_run=true")
        config = config.model_copy(update={"hardware": config.hardware.model_copy(update=changes)})
        return decide(shape_of(self.model), config, self.card_gib or CARD, _longest).hardware

    def make(self) -> Any:
        """Return the model with random weights, always the same ones."""
        return make_model(self.model, self.device, precision(self.hardware().dtype))

    def shop(self, hardware: HardwareConfig | None = None) -> Workshop:
        """Return a workshop of this model, with a folder of its own."""
        return Workshop(Path(mkdtemp(dir=self.folder)), hardware or self.hardware(), self.make)


def _longest(config: RunConfig) -> Load:
    """Return a micro-batch of long texts, all answers."""
    return Load(config.hardware.tokens, LONG, config.hardware.tokens)


def machine(bench: Bench) -> Row:
    """Return what the machine is, and the operations a second of a large matrix product on it."""
    row: Row = {name: version(name) for name in ("torch", "transformers", "deepspeed", "unlearn-lab")}
    on_gpu, side = bench.device == "cuda", 1024 if bench.small else 8192
    if on_gpu:
        card = torch.cuda.get_device_properties(0)
        name: str = card.name
        row |= {"card": name, "card GiB": card.total_memory / GIB, "CUDA": torch.version.cuda}
        row |= {"capability": f"{card.major}.{card.minor}", "driver": _driver()}
        known = (PEAKS[key] for key in sorted(PEAKS, key=len, reverse=True) if key in name)
        row["peak TFLOP/s"] = next(known, None)
    else:
        row |= {"processor": product_times.machine()["processor"], "peak TFLOP/s": None}
    dtype = torch.bfloat16 if on_gpu else torch.float32
    one, two = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    seconds = [timed(bench, lambda: one @ two)[0] for _ in range(10)]
    return row | {"measured peak TFLOP/s": 2e-12 * side**3 / median(seconds[2:])}


def timed(bench: Bench, call: Callable[[], Any]) -> tuple[float, Any]:
    if bench.device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = call()
    if bench.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def tried(bench: Bench, row: Row, call: Callable[[], Row]) -> Row:
    """Add what is measured to a row, or why it was not; free the memory."""
    if bench.left <= 0:
        return row | {"skipped": "no time left"}
    try:
        return row | call()
    except Exception as error:
        return row | {"error": shown(f"{type(error).__name__}: {error}")}
    finally:
        free_memory()


def shown(text: str) -> str:
    """Return the first line of a message, cut to fit into a table."""
    return text.strip().partition("\n")[0][:300]


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return (
        subprocess.run(asked, capture_output=True, text=True, check=False).stdout.partition("\n")[0] or None
    )
