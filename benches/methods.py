"""Methods: the cost of one training step of each, as a multiple of a step of grad_diff.

`python -m benches.methods --rounds N [--only npo,kl_min]`. One thread. In every round a few methods and the
baseline take the same step on the same rows, in order and in reverse. A ratio is the median over rounds of
ratios of CPU time, which other load on the machine hardly changes. Outputs of frozen models are computed
beforehand, as in a run, and not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benches.cases import ROOT, settings
from benches.presets import BASE, BATCH, Row, as_measured, rows
from benches.workshop import Workshop
from unlearn.config import MethodConfig
from unlearn.training.trainer import Trainer

RESULTS = ROOT / "benches" / "methods.json"
SEPARATE = 1.15  # NGDiff over two separate backwards of its losses, at most
TOGETHER = 4  # methods that take turns with one baseline
EVERY = 10  # steps from probe to probe

Step = Callable[[int], float]
"""Makes a step and returns the tokens that went through the model for it."""


@dataclass(frozen=True)
class Cost:
    """Ratios to the baseline: CPU time of a step, tokens of a step, CPU time for each token.

    `low` and `high` are the quartiles of the last over the rounds.
    """

    step: float
    tokens: float
    per_token: float
    low: float
    high: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(1)
    console = Console(width=130)
    only = set(filter(None, options.only.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        base = whole_step(workshop.trainer(as_measured(settings("method", BASE))))
        chosen = [row for row in rows() if not only or only & set(row.names)]
        measured = []
        for some in track(list(batched(chosen)), "methods", console=console, transient=True):
            trainers = {row.names[0]: workshop.trainer(row.method) for row in some}
            costs = compare(base, {name: whole_step(t) for name, t in trainers.items()}, options.rounds)
            measured += [(row, costs[row.names[0]]) for row in some]
            for trainer in trainers.values():
                trainer.engine.close()
        rules = separate(workshop, options.rounds) if not only or "ngdiff" in only else {}
    console.print(method_table(measured, workshop.title))
    if rules:
        console.print(rule_table(rules))
    results = {
        "case": workshop.title, "rounds": options.rounds,
        "methods": [{"names": row.names, "aim": row.aim, **asdict(cost)} for row, cost in measured],
        "rules": {title: {"aim": aim, **asdict(cost)} for title, (cost, aim) in rules.items()},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {RESULTS.relative_to(ROOT)}")


def compare(baseline: Step, steps: Mapping[str, Step], rounds: int) -> dict[str, Cost]:
    """Measure all in alternating order, after one warm-up step each."""
    paths = {"": baseline, **steps}
    for step in paths.values():
        step(0)
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    tokens: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(1, rounds + 1):
        for name in list(paths)[:: 1 if number % 2 else -1]:
            started = time.process_time()
            tokens[name].append(paths[name](number))
            seconds[name].append(time.process_time() - started)
    return {name: _cost(_ratios(seconds, name), _ratios(tokens, name)) for name in steps}


def _ratios(of: Mapping[str, Sequence[float]], name: str) -> list[float]:
    return [a / b for a, b in zip(of[name], of[""], strict=True)]


def _cost(steps: Sequence[float], tokens: Sequence[float]) -> Cost:
    each = [a / b for a, b in zip(steps, tokens, strict=True)]
    low, _, high = quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return Cost(median(steps), median(tokens), median(each), low, high)


def batched(chosen: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Group the rows that share a baseline."""
    for start in range(0, len(chosen), TOGETHER):
        yield chosen[start : start + TOGETHER]


def whole_step(trainer: Trainer) -> Step:
    """Make the trainer's own step, with its line of history."""

    def step(number: int) -> float:
        trainer.steps_made = number
        before = trainer.tokens
        trainer.step()
        return trainer.tokens - before

    return step


def two_backwards(trainer: Trainer) -> Step:
    """Run each term's forward and backward separately, then the update, without combining gradients."""

    def step(number: int) -> float:
        trainer.steps_made = number
        plan = trainer.plan(number)
        losses = [trainer.steps.backward(plan, {term.name: term.weight}, {}) for term in trainer.terms]
        loss = torch.cat(losses).sum().item()
        trainer.history.add({"step": number + 1, "loss": loss, **trainer.update()})
        return trainer.steps.tokens(plan)

    return step


def separate(workshop: Workshop, rounds: int) -> dict[str, tuple[Cost, float | None]]:
    """NGDiff's rule over separate backwards, and AutoLR's probes over the same step without them."""
    ngdiff, plain = settings("method", "ngdiff"), settings("method", BASE)
    probing = as_measured(ngdiff).model_dump() | {"schedule": "auto"}
    probing["auto_lr"]["every"] = 1
    two = two_backwards(workshop.trainer(as_measured(plain)))
    rule = whole_step(workshop.trainer(as_measured(ngdiff)))
    probed = compare(rule, {"probed": whole_step(workshop.trainer(MethodConfig(**probing)))}, rounds)[
        "probed"
    ]
    spread = Cost(*(1 + (value - 1) / EVERY for value in asdict(probed).values()))
    one = whole_step(workshop.trainer(as_measured(plain)))
    return {
        "ngdiff over two backwards": (compare(two, {"rule": rule}, rounds)["rule"], SEPARATE),
        "two backwards over grad_diff": (compare(one, {"two": two}, rounds)["two"], None),
        "a probing step over one without": (probed, None),
        f"the same, probing every {EVERY} steps": (spread, None),
    }


def method_table(measured: Sequence[tuple[Row, Cost]], title: str) -> Table:
    view = Table(
        "method", "step", "tokens", "per token", "quartiles", "", title=f"times {BASE} · {title}"
    )  # fmt: skip
    for row, cost in measured:
        view.add_row(
            ", ".join(row.names), f"{cost.step:.2f}×", f"{cost.tokens:.2f}×", *_judged(cost, row.aim)
        )
    return view


def rule_table(rules: dict[str, tuple[Cost, float | None]]) -> Table:
    view = Table("", "step", "quartiles", "", title="separate gradients and probes")
    for title, (cost, aim) in rules.items():
        view.add_row(title, *_judged(cost, aim))
    return view


def _judged(cost: Cost, aim: float | None) -> tuple[str, str, str]:
    met = aim is not None and cost.per_token <= aim
    verdict = "" if aim is None else f"[{'green' if met else 'red'}]≤ {aim}× {'met' if met else 'missed'}"
    return f"{cost.per_token:.2f}×", f"{cost.low:.2f}–{cost.high:.2f}", verdict


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.methods", description="The cost of each method.")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each method")
    parser.add_argument("--only", default="", help=f"comma-separated presets (all; {BATCH}+{BATCH} examples)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
