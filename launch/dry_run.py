"""`dry_run=true`: show the plan of a run with steps, tokens and memory. No weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TypeAlias

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from launch.memory.automatic import free_gib, settle
from launch.memory.estimate import Load, bound, estimate, shape_of, with_unit
from launch.resolve import Resolved
from launch.run.complete import is_complete
from unlearn.config import RunConfig
from unlearn.data.batching import Schedule, deal
from unlearn.data.example import Example
from unlearn.data.sources import load_sets
from unlearn.data.tokenization import TokenSequence
from unlearn.errors import UserError
from unlearn.models.skeleton import limits
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.rules import clip_norm
from unlearn.terms import bind, row_multiples
from unlearn.training.deepspeed_config import deepspeed_config
from unlearn.training.learning_rate import total_steps
from unlearn.training.step_data import kinds

_SHOWN = (
    "parameters", "gradients", "optimizer", "activations", "peak", "buffers", "extras",
    "device", "host", "cache",
)  # fmt: skip
Asked: TypeAlias = tuple[str | None, str, str]  # a question, if there is one, its answer, and its opening
_LOOKED_AT = 64  # steps: what a micro-batch holds hardly changes after that


def show_plan(resolved: Resolved, console: Console) -> None:
    """Print the plan of a resolved configuration."""
    config, plan = resolved.config, resolved.plan
    for warning in resolved.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
    table = Table(title="plan")
    table.add_column("")
    table.add_column("directory", overflow="fold")
    for column in ("state", "steps", "tokens"):
        table.add_column(column)
    memory = Table("", title="memory of each process")
    taken = []
    decided: list[str] = []
    known: dict[Asked, TokenSequence] = {}  # the plan's runs have one tokenizer, and most texts in common
    for run in plan.runs:
        state = "complete" if is_complete(run) else "to resume" if run.rundir.history.is_file() else "to make"
        one, why = settle(run.job.config, free_gib(run.job.config))
        decided += [f"{run.role}: {why}"] if why else []
        try:
            sets = _sequences(one, known)
            training, load = _training(one, sets), _largest(one, sets)
        except UserError as error:
            training, load = ("?", f"? ({str(error).splitlines()[0]})"), bound(one)
        table.add_row(run.role, str(run.directory), state, *training)
        memory.add_column(run.role, justify="right")
        taken.append(_memory(one, load))
    for part, *cells in zip(_SHOWN, *taken, strict=True):  # a column for each run: most terminals are narrow
        memory.add_row(part, *cells)
    console.print(table)
    console.print(memory)
    for why in decided:
        console.print(why, soft_wrap=True, highlight=False)
    for what in ("benchmarks", "variants"):
        if chosen := getattr(config.eval, what):
            console.print(f"{what}: {', '.join(chosen)}", soft_wrap=True, highlight=False)
    console.print(
        "tokens: of all training sequences with their own answers, without padding. memory: while "
        "training; device is the sum of the rows above it, host is in the machine's memory, cache holds "
        "outputs of frozen models (also on disk). See docs/hardware.md.",
        soft_wrap=True,
    )


def deepspeed_yaml(config: RunConfig) -> str:
    """Return DeepSpeed's configuration, made from `hardware` and `method.clip`, as YAML comments."""
    made = {"deepspeed": deepspeed_config(config.hardware, clip=clip_norm(config.method))}
    lines = ["generated from hardware and method.clip:", *OmegaConf.to_yaml(made).splitlines()]
    return "".join(f"# {line}\n" for line in lines)


def load_of(config: RunConfig) -> Load:
    """Return the largest micro-batch of the run's first steps, or a bound where its texts cannot be read."""
    try:
        return _largest(config, _sequences(config, {}))
    except UserError:
        return bound(config)


def _largest(config: RunConfig, sets: Mapping[str, Sequence[TokenSequence]]) -> Load:
    """Return the largest micro-batch; a set with alternative answers has a forward per kind of answer."""
    method, hardware = config.method, config.hardware
    if not sets:
        return Load(0, 0, 0)
    passes = {name: len(some) for name, some in kinds((t, t.needs) for t in bind(method)).items()}
    schedule = Schedule({n: len(rows) for n, rows in sets.items()}, method.sets[0], method.batch, config.seed)
    largest = Load(0, 0, 0)
    for step in range(min(_LOOKED_AT, total_steps(method, schedule.steps_per_epoch))):
        every = [(name, sets[name][row]) for name, some in schedule.rows(step).items() for row, _ in some]
        lengths = [passes.get(name, 1) * (len(s.ids) - 1) for name, s in every]
        rows = hardware.micro_batch
        dealt = deal(
            lengths, hardware.processes, max_tokens=None if rows else hardware.tokens,
            max_rows=rows * len(sets) if rows else None,
        )  # fmt: skip
        for micro in (micro for rank in dealt for micro in rank if micro):
            answers = sum(_answers(every[i][1]) * passes.get(every[i][0], 1) for i in micro)
            width = max(lengths[i] for i in micro)
            micro_batch = Load(len(micro) * width, width, answers)
            largest = max(largest, micro_batch, key=lambda load: (load.tokens, load.answers))
    different = {
        id(s): s for rows in sets.values() for s in rows
    }  # alternatives as rows repeat their example
    return replace(largest, cached=sum(map(_answers, different.values())))


def _answers(sequence: TokenSequence) -> int:
    return len(sequence.ids) - max(1, sequence.answer_start)


def _sequences(config: RunConfig, known: dict[Asked, TokenSequence]) -> dict[str, list[TokenSequence]]:
    """Tokenise the training sets with their own answers, but for pairs that are `known`; adds to these."""
    names = config.method.sets
    if not names:
        return {}
    sets = load_sets(config.dataset, names)
    plain = any(example.question is None for rows in sets.values() for example in rows)
    encoder = make_encoder(
        config.model, load_tokenizer(config.model), config.dataset.max_length,
        limits(config.model) if plain else None,  # answers beyond the model's positions are refused
    )  # fmt: skip
    sets = {name: encoder.chunks(rows) for name, rows in sets.items()}
    multiples = row_multiples(config.method, bind(config.method))
    new = list(dict.fromkeys(key for name in names for e in sets[name] if (key := _asked(e)) not in known))
    pairs = [(question, answer) for question, answer, _ in new]
    known |= zip(new, encoder.pairs(pairs, [opening for *_, opening in new]), strict=True)
    made = {name: [copy(known[_asked(e)]) for e in sets[name]] for name in names}
    return {name: [s for s in made[name] for _ in range(multiples.get(name, 1))] for name in names}


def _asked(example: Example) -> Asked:
    return example.question, example.answer, example.opening


def _training(config: RunConfig, sets: Mapping[str, Sequence[TokenSequence]]) -> tuple[str, str]:
    """Return the number of steps, and of tokens in all of them, for the table."""
    if not sets:
        return "–", "–"
    lengths = {name: [len(sequence.ids) - 1 for sequence in rows] for name, rows in sets.items()}
    sizes = {name: len(rows) for name, rows in sets.items()}
    schedule = Schedule(sizes, config.method.sets[0], config.method.batch, config.seed)
    steps = total_steps(config.method, schedule.steps_per_epoch)
    tokens = sum(
        lengths[name][row]
        for step in range(steps)
        for name, rows in schedule.rows(step).items()
        for row, _ in rows
    )
    return f"{steps}", f"{tokens:,}"


def _memory(config: RunConfig, load: Load) -> list[str]:
    shape = shape_of(config)
    if shape is None:
        return ["? (config.json not on this machine)", *("" for _ in _SHOWN[1:])]
    memory = estimate(shape, config, load)
    return [with_unit(getattr(memory, part)) for part in _SHOWN]
