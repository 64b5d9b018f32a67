"""OpenUnlearning: its CPU time and memory and ours, on the same model and rows, as ratios.

`python -m benches.peer --peer DIR --part training|evaluation|all --rounds 3 --hardware cpu`. DIR is a
checkout of OpenUnlearning with an environment of its own, which the user installs; nothing of it is kept
here. Its processes and ours take turns, one thread each; CPU time hardly changes with other load on the
machine. Needs TOFU and the nano models in a folder (UNLEARN_SHARED), and Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benches.cases import ROOT, SHARED
from benches.peer_runs import DATA, MODELS, RETAIN, TARGET, Measured, Ours, Peer
from unlearn.passes.product_times import on_machine

RESULTS = ROOT / "benches" / "peer.json"
EVALUATION = "TOFU evaluation"
MEMORY = 0.6  # our resident memory over the peer's, at most
# Relative. Rounding of fp32 is below; what is defined in another way differs by more.
LOSS, METRIC = 1e-4, 1e-3
BF16 = 50  # times as much where ours computes in bf16
NO_PEER = (
    "no --peer DIR, a checkout of OpenUnlearning: python -m benches.train and python -m benches.evaluation "
    "compare with plain code instead"
)


@dataclass(frozen=True)
class Method:
    """Our preset for a trainer of the peer and its experiment; `other`: why its loss is not the same."""

    preset: str
    experiment: str = "unlearn/tofu/default"
    other: str = ""


METHODS = {
    "NPO": Method("npo"),
    "SatImp": Method("satimp-openunlearning"),
    "GradDiff": Method("grad_diff"),
    "DPO": Method("dpo", "unlearn/tofu/idk", other="each draws refusals of its own"),
    "UNDIAL": Method("undial", other="the peer averages over padding and reads retain rows at weight 0"),
}
AIMS = {
    "cpu": {"NPO": 2.0, "SatImp": 2.0, "GradDiff": 1.8, EVALUATION: 3.0},
    "cpu-bf16": {EVALUATION: 6.0},
}
# Extraction strength is left out: the peer's has a floor of one over the answer's length.
SAME = {
    "forget_Q_A_Prob": "tofu/forget/probability",
    "forget_Q_A_ROUGE": "tofu/forget/rougeL_recall",
    "forget_truth_ratio": "tofu/forget/truth_ratio",
    "forget_quality": "tofu/forget_quality",
    "model_utility": "tofu/model_utility",
    "privleak": "tofu/privleak",
}


@dataclass(frozen=True)
class Turn:
    """A run of the peer's, the same of ours, and what makes two of them differ ("" for nothing)."""

    peer: Callable[[], Measured]
    ours: Callable[[], Measured]
    difference: Callable[[Measured, Measured], str]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    console = Console(width=130)
    if options.peer is None:
        console.print(NO_PEER)
        return
    checkout = Path(options.peer).resolve()
    python = interpreter(checkout, options.python)
    if not (MODELS / TARGET).is_dir() or not DATA.is_dir():
        console.print(f"left out: no TOFU or no nano models in {SHARED} (UNLEARN_SHARED)")
        return
    results: dict[str, Any] = {
        "processor": on_machine(), "rounds": options.rounds, "hardware": options.hardware,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        peer, ours = Peer(checkout, python, Path(folder)), Ours(Path(folder), options.hardware)
        wide = BF16 if options.hardware == "cpu-bf16" else 1
        turns = {}
        if options.part != "evaluation":
            turns = {name: training(peer, ours, name, options.steps, wide) for name in options.methods}
        if options.part != "training":
            turns[EVALUATION] = evaluation(peer, ours, options.retain_log, wide)
        results |= measure(turns, options.rounds, console)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(table(results))
    for name, row in _rows(results).items():
        if row["difference"]:
            console.print(f"{name}: {row['difference']}")


def interpreter(checkout: Path, chosen: str | None = None) -> str:
    """Return the peer's Python: `chosen`, that of venv/ in the checkout or next to it, or PATH's.

    Exits where the folder is no checkout of the peer or there is no such program.
    """
    if not all((checkout / part).is_dir() for part in ("configs", "src/trainer", "src/evals")):
        sys.exit(f"--peer={checkout}: no checkout of OpenUnlearning, which has configs/ and src/trainer/")
    candidates = [str(folder / "venv" / "bin" / "python") for folder in (checkout, checkout.parent)]
    python = chosen or next((file for file in candidates if Path(file).is_file()), "python")
    if shutil.which(python) is None:
        sys.exit(f"--python={python}: no such program; give the interpreter of OpenUnlearning's environment")
    return python


def training(peer: Peer, ours: Ours, name: str, steps: int, wide: float = 1) -> Turn:
    """Train; losses may differ by `wide` times `LOSS`."""
    method = METHODS[name]

    def difference(theirs: Measured, own: Measured) -> str:
        return f"not the same loss: {method.other}" if method.other else other_loss(theirs, own, wide)

    return Turn(
        lambda: peer.train(name, method.experiment, steps),
        lambda: ours.train(method.preset, steps),
        difference,
    )


def evaluation(peer: Peer, ours: Ours, retain_log: str | None, wide: float = 1) -> Turn:
    """Evaluate the target; the peer makes its log of the retain model first without `retain_log`.

    Metrics may differ by `wide` times `METRIC`.
    """
    log = str(Path(retain_log or peer.evaluate(RETAIN, None)["log"]).resolve())
    return Turn(
        lambda: peer.evaluate(TARGET, log), lambda: ours.evaluate(log), partial(other_metrics, wide=wide)
    )


def measure(turns: Mapping[str, Turn], rounds: int, console: Console) -> dict[str, Any]:
    """Let the peer and ours take turns, in reverse in each second round; returns figures by name."""
    measured: dict[str, list[tuple[Measured, Measured]]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            sides = {"peer": turn.peer, "ours": turn.ours}
            pair = {}
            for side in reversed(sides) if number % 2 else sides:
                pair[side] = sides[side]()
                console.print(f"round {number + 1}, {name}, {side}: {median(_timed(pair[side])):.2f} s")
            measured[name].append((pair["peer"], pair["ours"]))
    return {name: figures(pairs, turns[name].difference(*pairs[0])) for name, pairs in measured.items()}


def figures(pairs: Sequence[tuple[Measured, Measured]], difference: str) -> dict[str, Any]:
    """Return quartiles of CPU seconds and of the ratios of each round's medians; median peaks in bytes."""
    sides = dict(zip(("peer", "ours"), zip(*pairs, strict=True), strict=True))
    peaks = {side: median(each["peak"] for each in own) for side, own in sides.items()}
    above = {side: median(each["peak"] - each["imports"] for each in own) for side, own in sides.items()}
    return {
        "seconds": {side: _quartiles([s for m in own for s in _timed(m)]) for side, own in sides.items()},
        "peer_over_ours": _quartiles([median(_timed(peer)) / median(_timed(ours)) for peer, ours in pairs]),
        "peak": peaks,
        "peak_above_imports": above,
        "memory_ours_over_peer": peaks["ours"] / peaks["peer"],
        "memory_above_imports_ours_over_peer": above["ours"] / above["peer"],
        "difference": difference,
    }


def other_loss(theirs: Measured, ours: Measured, wide: float = 1) -> str:
    if math.isclose(theirs["loss"], ours["loss"], rel_tol=wide * LOSS):
        return ""
    return f"not the same loss: {theirs['loss']:.6g}, ours {ours['loss']:.6g}"


def other_metrics(theirs: Measured, ours: Measured, wide: float = 1) -> str:
    """Name the metrics that differ, of those that both define alike."""
    pairs = {key: (theirs["metrics"].get(key), ours["metrics"].get(own)) for key, own in SAME.items()}
    other = [
        f"{key} {one}, ours {two}"
        for key, (one, two) in pairs.items()
        if one is None or two is None or not math.isclose(one, two, rel_tol=wide * METRIC)
    ]
    return f"not the same metrics: {'; '.join(other)}" if other else ""


def table(results: Mapping[str, Any]) -> Table:
    view = Table(
        "", "peer, CPU s", "ours, CPU s", "peer over ours", "aim", "peak MiB (above imports)", "", "aim"
    )
    ours = "ours" if results["hardware"] == "cpu" else f"ours with hardware={results['hardware']}"
    view.title = (
        f"OpenUnlearning and {ours}, one thread · {results['processor']} · {results['rounds']} rounds"
    )
    for name, row in _rows(results).items():
        seconds = [_spread(row["seconds"][side]) for side in ("peer", "ours")]
        memory = [
            f"{row['peak'][side] / 2**20:.0f} ({row['peak_above_imports'][side] / 2**20:.0f})"
            for side in ("peer", "ours")
        ]
        shares = (row["memory_ours_over_peer"], row["memory_above_imports_ours_over_peer"])
        speed, wanted = row["peer_over_ours"], AIMS[results["hardware"]].get(name)
        aim = f"[{_colour(speed[1] >= wanted)}]≥ {wanted}×" if wanted else ""
        if row["difference"] and wanted:
            aim = f"[red]{row['difference'].partition(':')[0]}"
        view.add_row(
            name, *seconds, f"{speed[1]:.2f}× ({speed[0]:.2f}–{speed[2]:.2f})", aim, ", ours ".join(memory),
            f"{shares[0]:.2f}× ({shares[1]:.2f}×)", f"[{_colour(shares[0] <= MEMORY)}]≤ {MEMORY}×",
        )  # fmt: skip
    return view


def _rows(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: results[name] for name in (*METHODS, EVALUATION) if name in results}


def _spread(quartiles: Sequence[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _colour(met: bool) -> str:
    return "green" if met else "red"


def _timed(measured: Measured) -> list[float]:
    """Return the seconds that count: of several steps, all but the first, which warms up."""
    seconds: list[float] = measured["seconds"]
    return seconds[1:] or seconds


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.peer", description="OpenUnlearning and ours.")
    parser.add_argument("--peer", metavar="DIR", help="a checkout of OpenUnlearning")
    parser.add_argument("--python", metavar="FILE", help="its interpreter (venv/ in DIR or next to it)")
    parser.add_argument("--part", choices=("training", "evaluation", "all"), default="all")
    parser.add_argument("--methods", type=_methods, default=list(METHODS), help=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=6, help="of each training; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hardware", choices=list(AIMS), default="cpu", help="of ours; the peer's is fp32")
    parser.add_argument(
        "--retain-log",
        metavar="FILE",
        help="its TOFU_EVAL.json of the retain model; without it that is made first",
    )
    return parser.parse_args(arguments)


def _methods(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(METHODS)}")
    return names


if __name__ == "__main__":
    main()
