"""The largest model that one card trains in full: which should fit by the estimate, and whether it does.

`python -m benches.gpu.largest SIZE PRESET DEVICE` is one trial: the engine, and a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benches.cases import ROOT, settings
from benches.gpu.bench import Bench, Row, shown
from benches.gpu.models import LONG, groups, make_model, shape_of
from benches.presets import as_measured
from benches.workshop import Workshop
from launch.memory.automatic import USABLE, fits
from launch.memory.command import composed
from launch.memory.estimate import GIB, Load, estimate
from unlearn.config import RunConfig
from unlearn.training.engine import precision

SIZES = {"cuda": ("1b", "3b", "8b", "14b", "32b"), "cpu": ("tiny",)}
PRESETS = {"cuda": ("gpu", "gpu-80gb", "gpu-offload"), "cpu": ("cpu",)}
METHOD = "grad_diff"  # takes the memory of NPO, whose reference is cached beforehand
BATCH, TOKENS = 4, 4096  # of each set, of 512 tokens: one micro-batch
BEYOND = "not in the host's memory"  # not tried: the system would end other programs
LONGEST, SHORTEST = 150.0, 10.0  # seconds of one trial


def largest(bench: Bench) -> list[Row]:
    """Estimate each size, with and without offload; try the largest that should fit, and the next."""
    rows, trials = [], []
    for preset in PRESETS[bench.device]:
        of_preset = [_predicted(bench, size, preset) for size in SIZES[bench.device]]
        rows += of_preset
        trials += _edge(of_preset)
    for number, row in enumerate(trials):
        row |= _in_child(row, bench.device, min(LONGEST, bench.left / (len(trials) - number)))
    return rows


def _predicted(bench: Bench, size: str, preset: str) -> Row:
    memory = estimate(shape_of(size), _config(preset), Load(TOKENS, LONG, TOKENS // 2))
    host = psutil.virtual_memory().available
    on_card, in_host = fits(memory, bench.card_gib or host / GIB), memory.host <= USABLE * host
    should = ("yes" if on_card else "no") if in_host else BEYOND
    return {
        "model": size, "hardware": preset, "estimate GiB": memory.device / GIB,
        "host GiB": memory.host / GIB, "should fit": should,
    }  # fmt: skip


def _config(preset: str) -> RunConfig:
    config = composed(f"method={METHOD}", f"hardware={preset}", "dry_run=true")
    keys = {"activation_checkpointing": True, "micro_tokens": TOKENS}
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=keys)})


def _edge(rows: Sequence[Row]) -> list[Row]:
    """Return the last row that should fit, if any, and the one after it, if the host has room for it."""
    fitting = [number for number, row in enumerate(rows) if row["should fit"] == "yes"]
    last = max(fitting, default=-1)
    return [row for row in rows[max(last, 0) : last + 2] if row["should fit"] != BEYOND]


def _in_child(row: Row, device: str, seconds: float) -> Row:
    """Run a trial in a process of its own, whose end frees all memory."""
    if seconds < SHORTEST:
        return {"did fit": "no time left to try"}
    command = [sys.executable, "-m", "benches.gpu.largest", row["model"], row["hardware"], device]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"did fit": f"not done in {seconds:.0f} s"}
    if done.returncode:
        text = done.stderr.strip().rpartition("\n")[2] or f"ended with {done.returncode}"
        return {"did fit": "no", "why": shown(text)}
    measured: Row = json.loads(done.stdout.splitlines()[-1])
    return {"did fit": "yes", **measured}


def trial(size: str, preset: str, device: str) -> Row:
    """Make the model and its engine, and a step; return the seconds and the peak memory of the card."""
    hardware = _config(preset).hardware
    method = as_measured(settings("method", METHOD)).model_copy(update={"batch": BATCH})

    def make() -> Any:
        return make_model(size, device, precision(hardware.dtype))

    with tempfile.TemporaryDirectory() as folder:
        trainer = Workshop(Path(folder), hardware, make).trainer(method, groups(size, BATCH, long=True))
        started = time.perf_counter()
        loss = trainer.step().row["loss"]
        peak = torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None
        seconds = time.perf_counter() - started
        portion = trainer.engine.world.limits.portion("micro_tokens", TOKENS)
        return {"tokens of a forward": portion, "peak GiB": peak, "s/step": seconds, "loss": loss}


if __name__ == "__main__":
    print(json.dumps(trial(*sys.argv[1:4])))
