"""Put metrics on trial: `unlearn meta RUNS… --out DIR`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from eval.metrics.meta import FORMS, Estimate, Form
from launch.report import markdown
from launch.report.discover import left_out_lines
from launch.report.meta.pool import Pool, read_pool
from launch.report.meta.study import Attacks, Trial, attacks_of, trials
from launch.report.output import csv_text, show_files, write_files
from launch.report.results_table import format_value
from unlearn.arguments import Parser, path_argument
from unlearn.errors import UserError
from unlearn.files import check_writable
from unlearn.guard import tool

HEADS = ("auc", "R", "Q", "robust", "overall")
_DESCRIPTION = """\
Put metrics on trial: which of them tell models that have the knowledge from models that never had it (AUC),
and keep their value when the unlearned model is relearned (R) or quantised (Q). A table here and in
DIR/meta.md and DIR/meta.csv.

RUNS are run directories, folders that contain some, or patterns such as 'runs/npo-*'. Targets have the
knowledge, retain models do not; both are found through the runs. experiment=meta-evaluation makes some."""
_EXAMPLES = (
    "runs --out meta",
    "runs --out meta --form one_sided --utility 0.5",
    "runs --out meta --known 'none-authors-full-*' --unknown 'none-authors-clean-*'",
)
_NOTE = """\
auc: models with against models without the knowledge, by this metric alone; ½ is chance. R: change by
relearning against the retain model's; Q: change by quantisation; both of unlearned models that keep enough
utility and that the metric itself counts as forgotten, 1 is unmoved. robust: HM(R, Q). overall: HM(auc,
robust). In brackets 95 % bootstrap intervals over models; of one model there is none, and pools that do not
overlap have one of width 0, which is too narrow."""

_N = "n: unlearned models that R and Q are of."


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn meta`."""
    options = parser().parse_args(arguments)
    check_writable(options.out, f"--out {options.out}")
    pool = read_pool(options.runs, options.known, options.unknown)
    attacks = attacks_of(pool.unlearned)
    attacks = replace(
        attacks, relearned=_asked("relearned", options.relearned, attacks.relearned, pool),
        quantised=_asked("quantised", options.quantised, attacks.quantised, pool),
    )  # fmt: skip
    made = trials(pool, attacks, options.utility)
    if not made:
        raise UserError("no metric of a forget set was measured on models with and without the knowledge")
    about = _about(pool, attacks, options.utility)
    texts = {"md": _markdown(made, about, pool), "csv": csv_text(*long_rows(made))}
    files = write_files(options.out, "meta", texts)
    console = Console(highlight=False)
    console.print(_terminal(made, options.form))
    for line in (*about, " ".join(_NOTE.split()), _N):
        console.print(line, style="dim", markup=False)
    show_files(console, files, pool.left_out)


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("meta", _EXAMPLES, _DESCRIPTION)
    add = made.add_argument
    add("runs", nargs="+", metavar="RUNS", help="run directories, folders of them, or patterns")
    add("--out", type=path_argument, required=True, metavar="DIR", help="where the files go; made if missing")
    add("--known", nargs="+", default=[], metavar="RUN",
        help="names or patterns of runs that evaluate further models with the knowledge")  # fmt: skip
    add("--unknown", nargs="+", default=[], metavar="RUN", help="the same without the knowledge")
    add("--form", choices=FORMS, default="symmetric",
        help="the definition of R and Q in the table here; the files have both")  # fmt: skip
    add("--utility", type=float, default=0.8, metavar="SHARE",
        help="least judged/utility of an unlearned model to measure robustness on; default 0.8")  # fmt: skip
    add("--relearned", metavar="LABEL", help="relearning/STEPS; default: the most steps")
    add("--quantised", metavar="LABEL", help="quantisation/FORMAT; default: nf4, else the fewest bits")
    return made


def _asked(option: str, label: str | None, default: str | None, pool: Pool) -> str | None:
    if label is None:
        return default
    if not any(key.startswith(f"{label}/") for each in pool.unlearned for key in each.results):
        raise UserError(f"--{option} {label}: no unlearned model was scored with it")
    return label


def _about(pool: Pool, attacks: Attacks, utility: float) -> list[str]:
    attacked = [f"R after {attacks.relearned}" if attacks.relearned else "no relearning was scored (R)"]
    attacked += [f"Q after {attacks.quantised}" if attacks.quantised else "no quantisation was scored (Q)"]
    return [
        f"{len(pool.known)} models with the knowledge, {len(pool.unknown)} without, "
        f"{len(pool.unlearned)} unlearned (judged/utility ≥ {utility:g}); {'; '.join(attacked)}."
    ]


def _figures(trial: Trial, form: Form) -> list[Estimate]:
    faithful = trial.faithful
    auc = Estimate(faithful.auc, faithful.low, faithful.high, faithful.known + faithful.unknown)
    return [auc, trial.relearned[form], trial.quantised[form], trial.robust[form]]


def written(estimate: Estimate) -> str:
    """Return a value with its interval, and for robustness the number of models."""
    if math.isnan(estimate.value):
        return format_value(None)
    if math.isnan(estimate.low):
        return f"{format_value(estimate.value)} (n = {estimate.n})"
    return (
        f"{format_value(estimate.value)} ({format_value(estimate.low)} to {format_value(estimate.high)}, "
        f"n = {estimate.n})"
    )


def _terminal(made: Sequence[Trial], form: Form) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", overflow="fold")
    for head in (*HEADS, "n"):
        table.add_column(head, justify="right", no_wrap=True)
    for trial in made:
        cells = [_short(each) for each in _figures(trial, form)]
        attacked = max(trial.relearned[form].n, trial.quantised[form].n)
        table.add_row(trial.key, *cells, format_value(trial.overall(form)), str(attacked))
    return table


def _short(estimate: Estimate) -> str:
    """Return a value with its interval below it, in two digits."""
    if math.isnan(estimate.value):
        return format_value(None)
    interval = "" if math.isnan(estimate.low) else f"\n{estimate.low:.2f}–{estimate.high:.2f}"
    return f"{estimate.value:.2f}{interval}"


def _markdown(made: Sequence[Trial], about: Sequence[str], pool: Pool) -> str:
    parts = ["# Metrics on trial", *about]
    for form in FORMS:
        rows = [
            (f"`{trial.key}`", *map(written, _figures(trial, form)), format_value(trial.overall(form)))
            for trial in made
        ]
        parts += [f"## {form.replace('_', '-').capitalize()}", markdown.table(("metric", *HEADS), rows)]
    left_out = [f"- {line}" for line in left_out_lines(pool.left_out)]
    return "\n\n".join([*parts, " ".join(_NOTE.split()), *left_out]) + "\n"


def long_rows(made: Sequence[Trial]) -> tuple[list[str], list[list[object]]]:
    """Return heads and rows of the CSV: every figure of a metric, its interval and its number of models."""
    heads = ["metric", "form", "figure", "value", "low", "high", "n"]
    rows: list[list[object]] = []
    for trial in made:
        faithful = trial.faithful
        n = faithful.known + faithful.unknown
        rows.append([trial.key, "", "auc", *map(_cell, (faithful.auc, faithful.low, faithful.high)), n])
        rows.append([trial.key, "", "threshold", _cell(faithful.threshold), None, None, n])
        for form in FORMS:
            figures = (("R", trial.relearned), ("Q", trial.quantised), ("robust", trial.robust))
            for name, by_form in figures:
                value, low, high, count = by_form[form]
                rows.append([trial.key, form, name, *map(_cell, (value, low, high)), count])
            rows.append([trial.key, form, "overall", _cell(trial.overall(form)), None, None, None])
    return heads, rows


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else value
