"""The G-effect of single examples: ratios of one pass per batch to one backward per example.

`python -m benches.geffect [--device cuda] [--model 1b]`. The plain implementation has a forward and a
backward of each example, with all logits, and a product of each parameter's gradient with the direction. A
training pass is forward and backward of the same batches with the gradients of all weights. Both
implementations must give the same numbers, or nothing is reported. Needs TOFU and a nano model in a folder
(UNLEARN_SHARED); `1b` has the shape of a Llama 3.2 of that size and random weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benches.cases import ROOT, SHARED
from benches.train import peak
from unlearn.config import DatasetConfig
from unlearn.data.batching import collate, deal
from unlearn.data.sources import load_sets
from unlearn.data.tokenization import Encoder, TokenSequence
from unlearn.passes.forward import forward
from unlearn.passes.per_example.forward_mode import token_effects
from unlearn.passes.per_example.inner_products import inner_products

AIMS = {"plain": 10.0, "pass": 2.0, "memory": 1.5}
DIRECTIONS = 4  # the minimum of a probe: the objective, its two terms, a risk
ROUNDS = 6
TOKENS = {"cpu": 1024, "cuda": 16384}  # padded tokens per batch
ONE_B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip

Products = dict[str, Tensor]


class Unequal(Exception):
    """The implementations do not give the same numbers."""


class Case:
    """Token sequences, random directions and a model in evaluation mode; `trained`: it is sure of answers."""

    def __init__(
        self, model: Any, sequences: Sequence[TokenSequence], device: str, *, trained: bool, count: int
    ) -> None:
        self.model, self.some, self.device, self.trained = model, sequences, device, trained
        (self.bins,) = deal([len(s.ids) - 1 for s in self.some], 1, max_tokens=TOKENS[device])
        drawn = torch.Generator(device).manual_seed(0)
        self.directions = {
            name: [torch.randn(p.shape, generator=drawn, device=device) for _ in range(count)]
            for name, p in self.model.named_parameters()
        }

    def plain(self, count: int = 1) -> Products:
        products = [self._alone(s, count) for s in self.some]
        return {name: torch.stack([one[name] for one in products], dim=1) for name in self.directions}

    def exact(self, count: int) -> Products:
        """Compute the plain way in float64: fp32 loses digits of p − 1 where p is close to 1."""
        if not self.trained:
            return self.plain(count)
        double = copy(self)
        double.model = deepcopy(self.model).double()
        double.directions = {n: [v.double() for v in each] for n, each in self.directions.items()}
        return double.plain(count)

    def _alone(self, s: TokenSequence, count: int) -> Products:
        ids = torch.from_numpy(s.ids)[None].to(self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, s.answer_start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, s.answer_start :])
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        return {
            name: torch.stack([(gradient * v).sum() for v in several[:count]])
            for gradient, (name, several) in zip(gradients, self.directions.items(), strict=True)
        }

    def ours(self, count: int = 1) -> Products:
        some = [(name, several[:count]) for name, several in self.directions.items()]
        products: Products = {}
        for part in self.bins:
            for name, each in inner_products(self.model, self._batch(part), some).items():
                whole = products.setdefault(name, each.new_empty(count, len(self.some)))
                whole[:, part] = each
        return products

    def tokens(self) -> Tensor:
        """Return the mean over the answer tokens of each example."""
        means = torch.empty(len(self.some), dtype=torch.float64, device=self.device)
        for part in self.bins:
            batch = self._batch(part)
            effect = token_effects(self.model, batch, lambda name: self.directions[name][0]).effect
            means[part] = torch.stack([e.double().mean() for e in effect.split(batch.lengths.tolist())])
        return means

    def training(self, *, state: bool = False) -> None:
        """Run forward and backward with the gradients of all weights; with AdamW's `state`, a full step."""
        for part in self.bins:
            (-forward(self.model, self._batch(part)).logp.sum()).backward()
        if state:
            torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True).step()
        self.model.zero_grad()

    def forward(self) -> None:
        with torch.no_grad():
            for part in self.bins:
                forward(self.model, self._batch(part))

    def _batch(self, part: Sequence[int]) -> Any:
        return collate([self.some[i] for i in part]).to(torch.device(self.device))


def make_case(examples: int, model: str, device: str) -> Case:
    """Make the case of TOFU's forget set, and a Llama: of 4.3M, trained, or of 1.2B, random."""
    path = SHARED / "models" / "nano-tofu-full"
    encoder = Encoder(AutoTokenizer.from_pretrained(path))
    if model == "1b":
        torch.manual_seed(0)
        with torch.device(device):
            made: Any = AutoModelForCausalLM.from_config(LlamaConfig(**ONE_B), dtype=torch.float32)
    else:
        made = AutoModelForCausalLM.from_pretrained(path)
    tofu = DatasetConfig(
        name="tofu", source="tofu", path=str(SHARED / "data" / "tofu"), forget="forget10", limit=examples
    )  # fmt: skip
    rows = load_sets(tofu, ["forget"])["forget"]
    some = encoder.pairs([(e.question, e.answer) for e in rows])
    return Case(made.to(device).eval(), some, device, trained=model != "1b", count=DIRECTIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    console = Console()
    if not (SHARED / "models" / "nano-tofu-full").is_dir() or not (SHARED / "data" / "tofu").is_dir():
        console.print(f"left out: no TOFU or no models in {SHARED} (UNLEARN_SHARED)")
        return
    torch.set_num_threads(1)
    chosen = (options.examples, options.model, options.device)
    if options.memory:
        print(_memory(options.memory, *chosen))
        return
    console.print(table(measure(*chosen), *chosen))


def measure(examples: int, model: str, device: str) -> dict[str, float]:
    """Measure the best time of each implementation in alternating rounds (s), and peak memory (MiB).

    Raises:
        Unequal: the two implementations differ.
    """
    case = make_case(examples, model, device)
    _same(case)
    clock = time.process_time if device == "cpu" else _after_all
    ways: dict[str, Callable[[], object]] = {
        "plain": case.plain,
        "ours": case.ours,
        "pass": case.training,
        "forward": case.forward,
        "tokens": case.tokens,
        "plain, several": partial(case.plain, DIRECTIONS),
        "ours, several": partial(case.ours, DIRECTIONS),
    }
    seconds: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = clock()
            way()
            taken = clock() - started
            seconds[name] = min(taken, seconds.get(name, taken))
    del case
    return seconds | {
        f"memory/{name}": _memory_of(name, examples, model, device) for name in ("ours", "training")
    }


def _after_all() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _same(case: Case) -> None:
    ours, exact = case.ours(DIRECTIONS), case.exact(1)
    for name, each in exact.items():
        off = (ours[name][:1] - each).abs().max() / each.abs().max()
        if not off < 1e-4:
            raise Unequal(f"{name}: {float(off):.1e} between one pass and a backward per example; no report")
    total = torch.stack(list(ours.values()))[:, 0].sum(0)
    off = (case.tokens() - total).abs().max() / total.abs().max()
    if not off < 1e-4:
        raise Unequal(f"tokens: {float(off):.1e} between forward and reverse mode; no report")


def table(seconds: dict[str, float], examples: int, model: str, device: str) -> Table:
    size = {"nano": "nano (4.3M)", "1b": "Llama of 1.2B, fp32"}[model]
    place = {"cpu": "one CPU thread", "cuda": "one GPU"}[device]
    view = Table("", "", "aim", title=f"effects on {examples} examples · {size} · {place}")

    def row(name: str, ratio: float, aim: float | None = None, *, least: bool = False) -> None:
        met = aim is not None and (ratio >= aim if least else ratio <= aim)
        colour = "default" if aim is None else "green" if met else "red"
        wanted = "" if aim is None else f"{'≥' if least else '≤'} {aim}×"
        view.add_row(name, f"[{colour}]{ratio:.2f}×", wanted)

    several = f"{DIRECTIONS} directions"
    row("a backward per example over ours", seconds["plain"] / seconds["ours"], AIMS["plain"], least=True)
    row(f"the same, {several}", seconds["plain, several"] / seconds["ours, several"])
    row("ours over a training pass", seconds["ours"] / seconds["pass"], AIMS["pass"])
    row(f"the same, {several}", seconds["ours, several"] / seconds["pass"])
    row(
        "peak memory over a training step's",
        seconds["memory/ours"] / seconds["memory/training"],
        AIMS["memory"],
    )
    row("by token, over a training pass", seconds["tokens"] / seconds["pass"])
    row("by token, over a forward", seconds["tokens"] / seconds["forward"])
    return view


def _memory_of(way: str, examples: int, model: str, device: str) -> float:
    command = [
        sys.executable, "-m", "benches.geffect", "--memory", way, "--examples", f"{examples}",
        "--model", model, "--device", device,
    ]  # fmt: skip
    # glibc returns freed memory at once, so that the peak is that of memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {way} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _memory(way: str, examples: int, model: str, device: str) -> float:
    """Measure the peak (MiB) that it adds to a process with model and directions, after one forward."""
    case = make_case(examples, model, device)
    case.forward()
    before = torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss
    if way == "training":
        case.training(state=True)
    else:
        case.ours(DIRECTIONS)
    highest = torch.cuda.max_memory_allocated() if device == "cuda" else peak()
    return (highest - before) / 2**20


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.geffect", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--model", choices=("nano", "1b"), default="nano")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
