"""Evaluation: ratios of TOFU's whole suite in one pass to one pass per metric.

`python -m benches.evaluation --examples 100`. The plain implementation is that of papers' codes: every metric
reads its set again, in batches in data order, with all logits; a batch generates until its longest answer
ends; a gradient norm is one backward per example. Both implementations must give the same numbers, or
nothing is reported. Needs TOFU and the two nano models in a folder (UNLEARN_SHARED).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benches.plain_evaluation import Plain
from eval.collection.shared_prompts import collate_rows, rows_of
from eval.evaluate import evaluate
from unlearn.config import DatasetConfig
from unlearn.data.batching import deal
from unlearn.data.example import Example
from unlearn.data.sources import load_sets
from unlearn.data.tokenization import Encoder
from unlearn.distributed import ALONE, World
from unlearn.passes.module_modes import evaluating

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("UNLEARN_SHARED", ROOT.parent / "shared"))
RESULTS = ROOT / "benches" / "evaluation.json"
SETS = ("forget_eval", "retain_eval", "real_authors", "world_facts", "holdout")
AIMS = {"likelihood": 7.0, "all": 4.0, "floor": 1.1, "processes": 1.7}
TOKENS = 2048  # padded tokens per forward: fastest with one core's cache
ROWS = 128
ROUNDS = 2
LIMIT = 200


class Unequal(Exception):
    """The two implementations do not give the same number."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    console = Console()
    if not (SHARED / "models").is_dir():
        console.print(f"left out: no models in {SHARED} (UNLEARN_SHARED)")
        return
    torch.set_num_threads(1)
    if options.worker is not None:
        _worker(options.worker, options.processes, options.examples, Path(options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(options.examples, Path(folder))
        costs |= _one_over_two(options.examples, Path(folder))
    RESULTS.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")
    console.print(table(costs))


def measure(examples: int, folder: Path) -> dict[str, float]:
    """Measure CPU seconds of both implementations, by part, and their ratios.

    Raises:
        Unequal: a metric differs.
    """
    sets = tofu(examples)
    target, retain = (_model(name) for name in ("nano-tofu-full", "nano-tofu-retain90"))
    encoder = _encoder("nano-tofu-full")
    _ours(retain, encoder, sets, folder / "retain", None)  # of any number of runs, once
    plain = Plain(target, retain, encoder, sets, limit=LIMIT)
    seconds: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for part in ("likelihood", "generation", "gradients"):
        seconds[f"plain/{part}"], numbers = _timed(getattr(plain, part))
        theirs |= numbers
    for part, given in _PARTS.items():
        where = folder / part
        seconds[f"ours/{part}"], ours = _timed(
            lambda g=given, w=where: _ours(target, encoder, sets, w, folder / "retain", **g)  # type: ignore[misc]
        )
    _same(ours, theirs)
    seconds["floor"], _ = _timed(lambda: _floor(target, encoder, sets))
    every = sum(seconds[f"plain/{part}"] for part in ("likelihood", "generation", "gradients"))
    return seconds | {
        "likelihood": seconds["plain/likelihood"] / seconds["ours/likelihood"],
        "all": every / seconds["ours/all"],
        "floor_ratio": seconds["ours/likelihood"] / seconds["floor"],
    }


_PARTS: dict[str, dict[str, Any]] = {
    "likelihood": {"generation": False, "gradients": False},
    "generation": {"gradients": False},
    "all": {},
}


def tofu(examples: int) -> dict[str, list[Example]]:
    config = DatasetConfig(
        name="tofu", source="tofu", path=str(SHARED / "data" / "tofu"), forget="forget10",
        holdout="full@1200:1600",
    )  # fmt: skip
    return {name: rows[:examples] for name, rows in load_sets(config, SETS).items()}


def _ours(
    model: nn.Module, encoder: Encoder, sets: dict[str, list[Example]], folder: Path, retain: Path | None,
    world: World = ALONE, **options: Any,
) -> dict[str, float]:  # fmt: skip
    return evaluate(
        model, encoder, "tofu", sets, folder, options={"max_new_tokens": LIMIT, **options},
        retain_directory=retain, world=world, max_tokens=TOKENS, max_rows_generation=ROWS,
    )  # fmt: skip


def _floor(model: nn.Module, encoder: Encoder, sets: dict[str, list[Example]]) -> None:
    """Run a plain forward over each distinct token: each prompt once, followed by its answers."""
    pairs = []
    for name, examples in sets.items():
        for e in examples:
            pairs.append((e.question, e.answer))
            if name == "holdout":
                continue
            if name in ("forget_eval", "retain_eval"):
                pairs += [(e.question, e.paraphrased_answer or ""), (e.paraphrased_question, e.answer)]
            pairs += [(e.question, text) for text in e.perturbed_answers]
    sequences = encoder.pairs(list(dict.fromkeys(pairs)))
    rows = rows_of(sequences, shared=True)
    (bins,) = deal([row.width for row in rows], 1, max_tokens=TOKENS)
    with evaluating(model):
        for part in bins:
            batch = collate_rows(sequences, [rows[j] for j in part], dtype=torch.float32, in_pieces=False)
            model(input_ids=batch.input_ids, use_cache=False)


def _same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for key, value in theirs.items():
        # Log-probabilities near 0 are differences of fp32 numbers near 10.
        if not np.isclose(ours[key], value, rtol=1e-3, atol=1e-4):
            raise Unequal(f"{key}: {ours[key]!r} in one pass, {value!r} metric by metric; no report")


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def _one_over_two(examples: int, folder: Path) -> dict[str, float]:
    """Measure wall seconds of one process, of two independent ones with all of the work each, and of two that
    share it.

    The best of each in alternating rounds, as a machine's speed varies. One thread per process.
    """
    best: dict[str, float] = {}
    for turn in range(ROUNDS):
        for name, worlds in (("one", [1]), ("pair", [1, 1]), ("two", [2])):
            taken = _spawned(worlds, examples, folder / f"{name}-{turn}")
            best[f"wall/{name}"] = min(taken, best.get(f"wall/{name}", taken))
    one, pair, two = (best[f"wall/{name}"] for name in ("one", "pair", "two"))
    return best | {"processes": one / two, "processes_ceiling": 2 * one / pair}


def _spawned(worlds: Sequence[int], examples: int, folder: Path) -> float:
    """Return the seconds of the slowest process of simultaneous evaluations, each on so many processes."""
    command = [sys.executable, "-m", "benches.evaluation", "--examples", str(examples)]
    running = [
        subprocess.Popen(
            [*command, "--folder", f"{folder}/{number}", "--processes", f"{size}", "--worker", f"{rank}"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for number, size in enumerate(worlds) for rank in range(size)
    ]  # fmt: skip
    outputs = [worker.communicate()[0] for worker in running]
    if any(worker.returncode for worker in running):
        raise RuntimeError(f"measuring worlds of {', '.join(map(str, worlds))} processes failed")
    return max(float(text.splitlines()[-1]) for text in outputs)


def _worker(rank: int, world: int, examples: int, folder: Path) -> None:
    import torch.distributed as dist

    if world > 1:
        folder.mkdir(parents=True, exist_ok=True)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    sets, model, encoder = tofu(examples), _model("nano-tofu-full"), _encoder("nano-tofu-full")
    few = {name: rows[:2] for name, rows in sets.items()}
    _ours(model, encoder, few, folder / "warm", None, World(rank, world))  # what is imported on first use
    if world > 1:
        dist.barrier()
    started = time.perf_counter()
    _ours(model, encoder, sets, folder / "run", None, World(rank, world))
    print(time.perf_counter() - started)


def table(costs: dict[str, float]) -> Table:
    view = Table(
        "", "plain, s", "ours, s", "", "aim", title="TOFU, all metrics · nano · CPU seconds, one thread"
    )

    def row(
        name: str, plain: float, ours: float, ratio: float, aim: float | None = None, least: bool = True
    ) -> None:
        met = aim is not None and (ratio >= aim if least else ratio <= aim)
        colour = "default" if aim is None else "green" if met else "red"
        wanted = "" if aim is None else f"{'≥' if least else '≤'} {aim}×"
        view.add_row(name, f"{plain:.1f}", f"{ours:.1f}", f"[{colour}]{ratio:.2f}×", wanted)

    every = sum(costs[f"plain/{part}"] for part in ("likelihood", "generation", "gradients"))
    row("likelihood metrics", costs["plain/likelihood"], costs["ours/likelihood"], costs["likelihood"],
        AIMS["likelihood"])  # fmt: skip
    row("all metrics", every, costs["ours/all"], costs["all"], AIMS["all"])
    row("likelihood over one plain forward of each token", costs["floor"], costs["ours/likelihood"],
        costs["floor_ratio"], AIMS["floor"], False)  # fmt: skip
    one, pair, two = (costs[f"wall/{name}"] for name in ("one", "pair", "two"))
    row("one process over two, wall time of each", one, two, costs["processes"], AIMS["processes"])
    row("what two unrelated ones side by side reach, wall time", 2 * one, pair, costs["processes_ceiling"])
    return view


def _model(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(SHARED / "models" / name).eval()


def _encoder(name: str) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(SHARED / "models" / name))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100, help="of each set")
    for hidden in ("--worker", "--processes"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
