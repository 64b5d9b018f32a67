"""Estimate memory with each preset of `hardware`: `unlearn memory model=… method=… --card 80`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from launch.compose import checked, compose_run, force_overrides, given_values, refuse_sweep
from launch.config_groups import groups
from launch.dry_run import load_of
from launch.memory.automatic import CARD, decide, fits, settle
from launch.memory.estimate import Load, Memory, Shape, estimate, read_shape, shape_of, with_unit
from unlearn.arguments import Parser
from unlearn.config import HardwareConfig, LoraConfig, RunConfig
from unlearn.errors import UserError
from unlearn.guard import tool
from unlearn.models import adapt

PAPER = ("gpu", "gpu-80gb", "gpu-offload", "gpu-8", "gpu-8-zero3", "gpu-2x8-zero3", "gpu-2x8-80gb")
CARDS = (24, 40, 80)
RANK = 16
_COLUMNS = ("weights", "gradients", "optimizer", "activations", "buffers", "device", "host")
_PARTS = ("parameters", "gradients", "optimizer", "activations", "peak", "buffers", "extras")
_UNBOUNDED = 1000  # characters
_EXAMPLES = ("model=llama-3.1-8b-instruct method=npo --card 80", "model.lora.r=16", "--paper")
Estimated: TypeAlias = tuple[str, Memory, HardwareConfig]
"""A preset of `hardware`, a run's memory with it, and what is decided for the run."""
_DESCRIPTION = """\
Estimate the memory of each process while training, with each preset of hardware. No weights are loaded.
A terminal that is wide enough (some 150 characters) shows the parts of the device's memory."""
_COMMON: dict[str, Any] = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
_LLAMAS = {
    "8B": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=14336, **_COMMON
    ),
    "70B": LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28672, **_COMMON
    ),
}


def composed(*overrides: str) -> RunConfig:
    """Compose and check the configuration of one run."""
    forced = force_overrides(given_values(overrides))
    refuse_sweep(forced)
    return checked(compose_run(forced))


@cache
def llama(name: str, rank: int = 0) -> Shape:
    """Return the shape of a Llama 3.1 (arXiv 2407.21783, table 3), trained in full or with adapters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_LLAMAS[name], attn_implementation="sdpa")
        return read_shape(adapt.add_lora(model, LoraConfig(r=rank), 0) if rank else model)


def paper() -> str:
    """Return the table of estimates for NPO with a retain term, as Markdown.

    Micro-batches are of sequences of 512 tokens, half of them answers. What is `auto` is decided for each
    card; the row is of the largest.
    """
    lines = [
        f"| model | trained | hardware | tokens | recomputed | {' | '.join(_COLUMNS)} |"
        + "".join(f" {c} GiB |" for c in CARDS),
        "| --- | --- | --- | ---: | --- |" + " ---: |" * len(_COLUMNS) + " --- |" * len(CARDS),
    ]
    configs = {name: composed("method=npo", f"hardware={name}", "dry_run=true") for name in PAPER}
    for name in _LLAMAS:
        for rank in (0, RANK):
            for preset, config in configs.items():
                by_card = [_on_card(llama(name, rank), config, card) for card in CARDS]
                memory, hardware = by_card[-1]
                parts = (
                    memory.parameters, memory.gradients, memory.optimizer, memory.activations + memory.peak,
                    memory.buffers + memory.extras, memory.device, memory.host,
                )  # fmt: skip
                trained = f"adapters, r={rank}" if rank else "all"
                cells = [name, trained, preset, f"{hardware.tokens}", _recomputed(hardware)]
                cells += map(with_unit, parts)
                cells += [_yes(fits(each, card)) for (each, _), card in zip(by_card, CARDS, strict=True)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _on_card(shape: Shape, config: RunConfig, card_gib: float) -> tuple[Memory, HardwareConfig]:
    """Estimate a run on a card of this size, with what is decided for it."""

    def load_of(made: RunConfig) -> Load:
        return Load(made.hardware.tokens, 512, made.hardware.tokens // 2)

    made = decide(shape, config, card_gib, load_of)
    return estimate(shape, made, load_of(made)), made.hardware


def _recomputed(hardware: HardwareConfig) -> str:
    return _yes(bool(hardware.activation_checkpointing))


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def presets(overrides: Sequence[str], card_gib: float) -> Iterator[Estimated]:
    """Estimate a run with each preset of `hardware`, except those for Slurm.

    Yields the preset, its memory on a card of this size, and what is decided for it.

    Raises:
        UserError: the model's configuration is not on this machine.
    """
    for name in groups()["hardware"]:
        if name.startswith("slurm"):
            continue
        config = composed(*overrides, f"hardware={name}", "dry_run=true")
        shape = shape_of(config)
        if shape is None:
            raise UserError(f"model.path={config.model.path}: the model's config.json is not on this machine")
        settled, _ = settle(config, card_gib)
        yield name, estimate(shape, settled, load_of(settled)), settled.hardware


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("memory", _EXAMPLES, _DESCRIPTION)
    made.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for unlearn: model=… method=… dataset=…"
    )
    made.add_argument(
        "--card", type=float, default=CARD, metavar="GIB", help="memory of one GPU in GiB (default: 80)"
    )
    made.add_argument("--paper", action="store_true", help="Llamas of 8B and 70B instead, as Markdown")
    return made


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `unlearn memory`."""
    options = parser().parse_args(arguments)
    if options.paper:
        sys.stdout.write(paper())
        return 0
    _print(Console(), [*presets(options.overrides, options.card)], options.card)
    return 0


def _print(console: Console, estimates: Sequence[Estimated], card_gib: float) -> None:
    """Print a row for each preset, with the parts of the device's memory if the console has the width."""
    table = _table(estimates, card_gib, parts=_PARTS)
    if console.measure(table, options=console.options.update(max_width=_UNBOUNDED)).maximum > console.width:
        table = _table(estimates, card_gib)
    console.print(table)


def _table(estimates: Sequence[Estimated], card_gib: float, parts: Sequence[str] = ()) -> Table:
    """Return the table with these parts of the device's memory, without columns that are empty."""
    rows = [
        {
            "hardware": name,
            "tokens": f"{hardware.tokens}",
            "recomputed": _recomputed(hardware),
            **{part: with_unit(getattr(memory, part)) for part in (*parts, "device", "host")},
            f"fits {card_gib:g} GiB": "–" if hardware.device == "cpu" else _yes(fits(memory, card_gib)),
        }
        for name, memory, hardware in estimates
    ]
    heads = [head for head in rows[0] if any(row[head] != "–" for row in rows)]
    table = Table(title="memory of each process while training")
    for head in heads:
        first = head == "hardware"
        table.add_column(head, justify="left" if first else "right", no_wrap=first)
    for row in rows:
        table.add_row(*(row[head] for head in heads))
    return table
