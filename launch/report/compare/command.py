"""Compare runs by their results: `unlearn compare RUNS… --out DIR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from eval.metric_catalog import in_order
from launch.report.compare import export, tables
from launch.report.compare.discover import Discovered, find
from launch.report.compare.page import page
from launch.report.compare.rows import Comparison, compared
from launch.report.compare.runs import RunRole, measured
from launch.report.compare.selection import chosen_keys, chosen_metrics, narrowed, ordered
from launch.report.discover import left_out_lines
from launch.report.kept import KeptRun, read, write_archive
from launch.report.output import show_files, write_files
from launch.report.packed import ENDING, check_name
from launch.report.results_table import LEGEND
from unlearn.arguments import Parser, path_argument
from unlearn.files import check_writable
from unlearn.guard import tool

_DESCRIPTION = """\
Compare runs: a table here and in DIR/compare.csv, .tex and .md, and DIR/compare.html to explore them.

RUNS are run directories, folders that contain some, patterns such as 'runs/npo-*', archives of an earlier
--keep, or exports of W&B: the CSV that its table of runs downloads, lines of JSON with name, config and
summary, folders of offline runs.
Runs that differ in the seed alone are one row, with mean and 95 % interval. Runs that cannot be compared are
listed with the reason."""
_KEYS = "KEY is a key of config.yaml, or enough of its end: method.forget.beta, forget.beta, beta."
_EXAMPLES = (
    "runs --out comparison",
    "runs --out c --where method=npo,simnpo --where lr=1e-5",
    "runs --out c --metrics forget_quality model_utility --sort model_utility",
    "runs --out c --group-by method beta",
    "runs --out c --keep study.json.gz",
    "wandb_export.csv --out c --retain none-authors-forget10-nano-9bd27784",
)


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn compare`."""
    options = parser().parse_args(arguments)
    named: dict[RunRole, str] = {}
    if options.target:
        named["target"] = options.target
    if options.retain:
        named["retain model"] = options.retain
    check_name(options.keep)
    check_writable(options.out, f"--out {options.out}")
    discovered = find(options.runs, named)
    comparison, every = make(discovered, options.metrics, options.group_by, options.where, options.sort)
    kept = None if options.keep is None else _to_keep(comparison, options.runs)
    files = write(comparison, every, discovered, options.out)
    if kept is not None:
        write_archive(options.keep, kept)
        files.append(options.keep)
    _show(comparison, discovered, files)


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("compare", _EXAMPLES, _DESCRIPTION, _KEYS)
    add = made.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="run directories, folders of them, patterns, archives, exports of W&B",
    )
    add("--out", type=path_argument, required=True, metavar="DIR", help="where the files go; made if missing")
    add("--metrics", nargs="+", metavar="METRIC",
        help="columns of the tables: keys, their ends or patterns ('tofu/forget/*'); else the main ones. "
        "compare.csv and the page have all of them in any case")  # fmt: skip
    add(
        "--group-by",
        nargs="+",
        metavar="KEY",
        help="a row for each combination of these settings, averaged over the other settings",
    )
    add("--where", action="append", default=[], metavar="KEY=VALUE",
        help="only runs with this value, or one of several: KEY=A,B; can be repeated")  # fmt: skip
    add("--sort", metavar="METRIC", help="sort the rows by this metric, the best first; else by name")
    add(
        "--target",
        metavar="RUN",
        help="the run (directory or name) that evaluates the target, if it is not known",
    )
    add("--retain", metavar="RUN", help="the same for the retain model")
    add("--keep", type=path_argument, metavar="FILE",
        help="also keep what the tables are made from, without models; the name ends in "
        f"{ENDING}. The file is read as RUNS, so that further runs can be added to it")  # fmt: skip
    return made


def make(
    discovered: Discovered, metrics: Sequence[str] | None = None, group_by: Sequence[str] | None = None,
    where: Sequence[str] = (), sort: str | None = None,
) -> tuple[Comparison, list[str]]:  # fmt: skip
    """Return the comparison of runs, and all metrics that they have.

    Raises:
        UserError: no run has a key, a value or a metric that an option names.
    """
    runs = narrowed(discovered.runs, where)
    every = in_order(key for run in runs for key in measured(run.results))
    columns = chosen_metrics(every, metrics)
    comparison = compared(runs, discovered.anchors, columns, chosen_keys(runs, group_by))
    return ordered(comparison, chosen_metrics(every, [sort])[0] if sort else None), every


def write(comparison: Comparison, every: Sequence[str], discovered: Discovered, out: Path) -> list[Path]:
    """Write compare.csv, .tex, .md and .html, each whole or not at all, and return their paths."""
    left_out = left_out_lines(discovered.left_out)
    about = "\n".join(
        ["", tables.note(comparison), "", LEGEND, "", *(f"- {export.escaped(x)}" for x in left_out)]
    )
    texts: Mapping[str, str] = {
        "csv": export.in_csv(comparison, every),
        "tex": export.in_latex(comparison),
        "md": f"# Comparison\n\n{export.in_markdown(comparison)}{about}\n",
        "html": page(comparison, every, discovered),
    }
    return write_files(out, "compare", texts)


def _to_keep(comparison: Comparison, arguments: Sequence[str]) -> list[KeptRun]:
    """Return what is kept of the compared runs, and of their targets and retain models wherever these are."""
    names = {run.name for row in (*comparison.rows, *comparison.anchors) for run in row.runs}
    anchors = [str(run.path) for row in comparison.anchors for run in row.runs if run.path is not None]
    return [run for run in read([*arguments, *anchors])[0] if names & {run.name, *run.name.split()}]


def _show(comparison: Comparison, discovered: Discovered, files: Sequence[Path]) -> None:
    console = Console(highlight=False)
    table, hidden = tables.terminal(comparison, console)
    console.print(table)
    console.print()
    if hidden:
        console.print(
            f"{hidden} more columns in {files[0]} (or choose: --metrics)", style="dim", markup=False
        )
    console.print(tables.note(comparison), style="dim", markup=False)
    console.print(LEGEND, style="dim", markup=False)
    show_files(console, files, discovered.left_out)
