"""Check this program on one GPU in nine minutes: speed, memory and what happens where memory ends.

`python -m benches.gpu` (`make bench-gpu`) writes gpu.json after each part, and gpu.md. On a machine without
a GPU `--device cpu --model tiny --seconds 60` tries the same code. Parts run in a process of their own: if
one dies or does not end, that is recorded, and another process goes on with the next part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benches.gpu.table import markdown

ROOT = Path(__file__).resolve().parents[2]
SHARES = {
    "training": 120, "memory": 50, "geffect": 50, "evaluation": 80, "generation": 50, "effects": 30,
    "out_of_memory": 30, "largest": 130,
}  # fmt: skip
"""The parts in order, with their shares of the time. What one leaves, the next ones have."""
LATE = 1.5  # times the time that it has left, and a part is ended
ALONE = ("largest",)  # needs the whole card for other processes
LAST = 10.0  # seconds that are kept for writing
NO_GPU = 4  # exit status of a process that has none


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        _work(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gpu.json"
    begun = time.time()
    parts = options.parts.split(",")
    write(file, {"model": options.model, "device": options.device, "seconds": options.seconds, "parts": {}})
    with tempfile.TemporaryDirectory() as folder:
        while waiting := [name for name in parts if name not in read(file)["parts"]]:
            left = options.seconds - LAST - (time.time() - begun)
            together = waiting[:1] if waiting[0] in ALONE else [name for name in waiting if name not in ALONE]
            ended = "no time left" if left <= 0 else _worker(options, together, waiting, left, folder)
            still = [name for name in together if name not in read(file)["parts"]]
            if still and ended:  # it died in the first of these
                record(file, still[0], {"error": ended})
    result = read(file)
    write(file, result | {"took": time.time() - begun})
    text = markdown(read(file))
    (options.out / "gpu.md").write_text(text, encoding="utf-8")
    print(f"written to {file} and {options.out / 'gpu.md'}")
    return int(not any("rows" in part for part in result["parts"].values()))


def _worker(
    options: argparse.Namespace, parts: Sequence[str], waiting: Sequence[str], left: float, folder: str
) -> str:
    """Run parts in a new process; return why it ended, "" where nothing went wrong."""
    command = [sys.executable, "-m", "benches.gpu", "--worker", ",".join(waiting), "--parts", ",".join(parts)]
    command += ["--out", str(options.out), "--seconds", f"{left:.1f}"]
    command += ["--device", options.device, "--model", options.model, "--folder", folder]
    try:
        code = subprocess.run(command, cwd=ROOT, check=False, timeout=left + LAST / 2).returncode
    except subprocess.TimeoutExpired:
        return "no time left: it was ended"
    if code == NO_GPU:
        sys.exit(
            "PyTorch sees no GPU here. `--device cpu --model tiny --seconds 60` tries the check without one"
        )
    return f"its process ended with {code}" if code else ""


def _work(options: argparse.Namespace) -> None:
    """Run parts one after the other; end after one with an error, which may have left the GPU unusable."""
    file, begun = options.out / "gpu.json", time.monotonic()
    waiting = options.worker.split(",")
    # These imports take seconds, which the other process does not need.
    import torch

    from benches.gpu import parts as measured
    from benches.gpu.bench import Bench, machine
    from benches.gpu.largest import largest

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    calls = {**measured.PARTS, "largest": largest}
    for name in options.parts.split(","):
        left = options.seconds - (time.monotonic() - begun)
        own = left * SHARES[name] / sum(SHARES[other] for other in waiting[waiting.index(name) :])
        state = read(file)
        bench = Bench(options.model, options.device, Path(options.folder, name), time.monotonic() + own)
        bench.folder.mkdir()
        if "machine" not in state:
            state["machine"] = machine(bench)
            write(file, state)
        bench = bench.on(state["machine"])
        print(f"{name}: about {own:.0f} s", flush=True)
        started = time.monotonic()
        with _ended_late(file, name, LATE * own + LAST):
            rows = _rows(calls[name], bench)
        seconds = time.monotonic() - started
        failed = [row["error"] for row in rows if "error" in row]
        print(f"{name}: {seconds:.0f} s{''.join(f', {text}' for text in failed)}", flush=True)
        record(file, name, {"seconds": seconds, "rows": rows})
        if failed:
            return


def _rows(call: Callable[[Any], list[dict[str, Any]]], bench: Any) -> list[dict[str, Any]]:
    try:
        return call(bench)
    except Exception as error:
        return [{"error": f"{type(error).__name__}: {error}"[:300]}]


@contextmanager
def _ended_late(file: Path, name: str, seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, and record it."""

    def end() -> None:
        record(file, name, {"error": f"not done in {seconds:.0f} s"})
        print(f"{name}: not done in {seconds:.0f} s", flush=True)
        os._exit(0)

    guard = threading.Timer(seconds, end)
    guard.daemon = True
    guard.start()
    try:
        yield
    finally:
        guard.cancel()


def record(file: Path, name: str, part: dict[str, Any]) -> None:
    """Add a part to the file."""
    state = read(file)
    state["parts"][name] = part
    write(file, state)


def read(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state


def write(file: Path, state: dict[str, Any]) -> None:
    """Replace the file at once, so that a killed process leaves the former one."""
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benches", help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=540.0, help="of all parts together")
    parser.add_argument("--parts", default=",".join(SHARES), help="comma-separated, in this order (all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("1b", "tiny"), default="1b", help="tiny: to try the check itself")
    for hidden in ("--worker", "--folder"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    if unknown := set(options.parts.split(",")) - set(SHARES):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
