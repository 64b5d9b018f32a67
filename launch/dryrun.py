"""`dry_run=true`: what would be made, and what it takes. No weights are loaded."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from launch.plan import Planned, make_plan
from launch.processes import is_complete
from unlearn import models
from unlearn.config import RunConfig
from unlearn.data.batches import Schedule
from unlearn.data.sources import load_sets
from unlearn.errors import UserError
from unlearn.methods import bind
from unlearn.rules import make_rule
from unlearn.trainer import total_steps

_GIB = 2**30


def show_plan(config: RunConfig, console: Console) -> None:
    """Print the plan of a checked configuration."""
    plan = make_plan(config)
    table = Table(title="plan")
    table.add_column("")
    table.add_column("directory", overflow="fold")
    for column in ("state", "steps", "tokens", "memory per process"):
        table.add_column(column)
    for run in plan.runs:
        state = "complete" if is_complete(run) else "to resume" if run.rundir.history.is_file() else "to make"
        table.add_row(run.role, str(run.directory), state, *_training(run), _memory(run))
    console.print(table)
    for what in ("benchmarks", "variants"):
        if chosen := getattr(config.eval, what):
            console.print(f"{what}: {', '.join(chosen)}", soft_wrap=True, highlight=False)
    console.print(
        "tokens: of all training sequences with their own answers, padding not counted. memory: weights, "
        "gradients and optimizer state; activations come on top and grow with hardware.micro_tokens.",
        soft_wrap=True,
    )


def _training(run: Planned) -> tuple[str, str]:
    config = run.job.config
    names = config.method.sets
    if not names:
        return "–", "–"
    try:
        tokenizer = models.load_tokenizer(config.model)
        encoder = models.make_encoder(config.model, tokenizer, config.dataset.max_length)
        sets = {name: encoder.chunks(rows) for name, rows in load_sets(config.dataset, names).items()}
        sizes = {name: len(sets[name]) for name in names}
        schedule = Schedule(sizes, names[0], config.method.batch, config.seed)
        steps = total_steps(config.method, schedule.steps_per_epoch)
    except UserError as error:
        return "?", f"? ({str(error).splitlines()[0]})"
    lengths = {
        name: [len(s.ids) - 1 for s in encoder.pairs([(e.question, e.answer) for e in sets[name]])]
        for name in names
    }
    tokens = sum(
        lengths[name][row]
        for step in range(steps)
        for name, rows in schedule.rows(step).items()
        for row, _ in rows
    )
    return f"{steps}", f"{tokens:,}"


def _memory(run: Planned) -> str:
    config = run.job.config
    count = models.parameter_count(config.model)
    if count is None:
        return "? (configuration not on this machine)"
    return f"{memory_gib(config, count):.2f} GiB"


def memory_gib(config: RunConfig, parameters: int) -> float:
    """Estimated memory of one process on its device, in GiB, without activations and offloaded parts.

    Weights in compute precision, fp32 gradients, two moments and (bf16) fp32 master weights, each divided
    by the processes as the ZeRO stage says (arXiv 1910.02054, §5), and what rule, teacher and schedule keep.
    """
    hardware = config.hardware
    size = 2 if hardware.dtype == "bf16" else 4
    share = hardware.processes
    weights = parameters * size / (share if hardware.zero == 3 else 1)
    if not config.method.sets:
        return weights / _GIB
    method = config.method
    trained = parameters // 100 if config.model.lora.r or method.intervention else parameters
    gradients = trained * 4 / (share if hardware.zero >= 2 else 1)
    master = 4 if size == 2 else 0
    optimizer = 0 if hardware.offload else trained * (8 + master) / (share if hardware.zero >= 1 else 1)
    terms = bind(method)
    kept = 0.0
    if make_rule(**method.rule.model_dump()).separate:  # a share of the gradient for each term
        kept += len(terms) * trained * 4 / (share if hardware.zero >= 1 else 1)
    if any("teacher_logits" in term.needs for term in terms):
        kept += trained * 4 / (share if hardware.zero == 3 else 1)
    if method.schedule == "auto":  # weights before and after an update, and between, while it is probed
        kept += 3 * trained * size / (share if hardware.zero == 3 else 1)
    return (weights + gradients + optimizer + kept) / _GIB
