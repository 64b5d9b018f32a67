"""The table of what was published on larger models, and what a run of it would take."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from launch.config_groups import values_of
from launch.memory.automatic import decide, fits
from launch.memory.command import composed
from launch.memory.estimate import Load, Shape, estimate
from launch.report import markdown
from unlearn.config import HardwareConfig, RunConfig, Section

FILE = Path(__file__).with_name("published.yaml")
CARD, PRESETS = 80.0, ("gpu", "gpu-80gb", "gpu-offload", "gpu-8-zero3")
"""GiB of a card, and the presets of `hardware` in the order in which they are tried."""
FLOPS, SHARE = 312e12, 0.4
"""Dense bf16 operations of an A100 in a second (its data sheet), and the share of them that is assumed."""
_LONGEST = 512


class Row(Section):
    method: str
    preset: str
    figures: str


class Group(Section):
    """Figures of one benchmark and model. `command`, `keys` of the method: what makes such a run.

    `texts`, `length`: of the forget set, and tokens of a text.
    """

    benchmark: str
    model: str
    measures: str
    source: str
    command: str
    keys: dict[str, Any] = Field({})
    texts: int | None = None
    length: int | None = None
    rows: list[Row]


class Sizes(Section):
    """The shape of a Llama or Mistral whose embedding and head are two matrices."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int

    def shape(self) -> Shape:
        wide, narrow = self.hidden, self.hidden // self.heads * self.kv_heads
        block = 2 * wide * wide + 2 * wide * narrow + 3 * wide * self.inner + 2 * wide
        parameters = 2 * self.vocabulary * wide + self.layers * block + wide
        return Shape(
            self.vocabulary, wide, self.layers, self.heads, self.kv_heads, wide // self.heads, self.inner,
            parameters, parameters,
        )  # fmt: skip


class Published(Section):
    shapes: dict[str, Sizes]
    groups: list[Group]


def load() -> Published:
    return Published.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def section() -> str:
    """Return the section of the page, as Markdown."""
    published = load()
    parts = [
        "## Published, not tried here",
        f"Figures of others on models of 7B parameters. `hardware` is the first of {', '.join(PRESETS)} "
        f"with which the run fits on cards of {CARD:g} GiB, by the estimate of `unlearn memory`. `hours` are "
        f"of the training alone on one A100: 6 operations a parameter and token at {SHARE:.0%} of its "
        f"{FLOPS / 1e12:g} TFLOP/s; – where the number of tokens is not known. Not in them: second answers "
        "(DPO, FLAT), forwards of a reference model (NPO, RMU, KL) and of activation checkpointing, and the "
        "training of a target or retain model where the command plans one.",
    ]
    for group in published.groups:
        shape = published.shapes[group.model].shape()
        first = fitting(group, group.rows[0], shape)[0] or PRESETS[-1]
        parts += [f"### {group.benchmark}, {group.model}", _about(group, first)]
        rows = [_row(group, row, shape) for row in group.rows]
        heads = ("method", f"published: {group.measures}", "preset", "cards", "hardware", "hours")
        parts.append(markdown.table(heads, rows))
    return "\n\n".join(parts)


def _about(group: Group, hardware: str) -> str:
    keys = "".join(f" method.{key}={markdown.written(value)}" for key, value in group.keys.items())
    texts = f" {group.texts} texts of about {group.length} tokens." if group.texts and group.length else ""
    command = f"`unlearn method={group.rows[0].preset} {group.command}{keys} hardware={hardware}`"
    return (
        f"Published, not tried here. Source: {markdown.linked(group.source)}.{texts} "
        f"The first row's command, the others with their presets: {command}"
    )


def _row(group: Group, row: Row, shape: Shape) -> tuple[str, ...]:
    name, config = fitting(group, row, shape)
    hours = training_hours(config, shape, group.texts, group.length)
    cards = config.hardware.processes
    held = f"{cards} × {CARD:g} GiB" if name else f"more than {cards} × {CARD:g} GiB"
    return (
        row.method, row.figures, f"`{row.preset}`", held, f"`{name}`" if name else "–",
        "–" if hours is None else f"{hours:.2g}",
    )  # fmt: skip


def fitting(group: Group, row: Row, shape: Shape) -> tuple[str, RunConfig]:
    """Return the first preset of hardware with which the run fits, "" if none does, and its configuration."""
    choices = dict(choice.split("=", 1) for choice in group.command.split())
    named = {key: values_of(key, choices[key]) for key in ("model", "dataset")}
    method = {**values_of("method", row.preset), **group.keys}
    config = None
    for preset in PRESETS:
        config = RunConfig.model_validate({**named, "method": method, "hardware": _hardware(preset)})
        made = decide(shape, config, CARD, _load)
        if fits(estimate(shape, made, _load(made)), CARD):
            return preset, made
    assert config is not None
    return "", config


@cache
def _hardware(preset: str) -> HardwareConfig:
    return composed(f"hardware={preset}", "dry_run=true").hardware


def _load(config: RunConfig) -> Load:
    return Load(config.hardware.tokens, _LONGEST, config.hardware.tokens // 2)


def training_hours(config: RunConfig, shape: Shape, texts: int | None, length: int | None) -> float | None:
    """Return the hours of the training on one card; None where the number of tokens is not known."""
    method = config.method
    if length is None or (method.steps is None and texts is None):
        return None
    steps = method.steps or method.epochs * -(-(texts or 0) // method.batch)
    tokens = steps * method.batch * len(method.sets) * length
    return 6 * shape.parameters * tokens / (SHARE * FLOPS) / 3600
