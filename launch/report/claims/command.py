"""Try the claims of the papers on runs: `unlearn claims RUNS… --out FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.report.claims import definitions
from launch.report.claims.figures import figure
from launch.report.claims.page import page
from launch.report.claims.published import section
from launch.report.claims.verdicts import Trial, tasks, tried
from launch.report.kept import read, write_archive
from launch.report.output import show_files, write_files
from launch.report.packed import ENDING, check_name
from unlearn.arguments import Parser, path_argument
from unlearn.errors import UserError
from unlearn.files import check_writable
from unlearn.guard import tool

_DESCRIPTION = """\
Try the claims of the papers on runs: paired differences over seeds with their intervals, and for each claim
whether it holds, does not hold, or the runs cannot tell. Writes one page with its figures.

RUNS are run directories, folders that contain some, patterns, or archives of an earlier --keep.
experiment=claims makes the line-up of methods, claims-satimp, claims-geffect, claims-ngdiff, claims-rmu and
claims-grun what single claims need."""
_EXAMPLES = (
    "runs --out claims.md",
    "runs --out docs/claims.md --keep docs/data/claims.json.gz",
    "docs/data/claims.json.gz --out docs/claims.md",
)


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn claims`."""
    options = parser().parse_args(arguments)
    out: Path = options.out
    if out.suffix != ".md":
        raise UserError(f"--out {out}: name a Markdown file, such as {out.with_suffix('.md')}")
    check_name(options.keep)
    check_writable(out.parent, f"--out {out}")
    runs, left_out = read(options.runs)
    every = tasks(runs)
    claims = definitions.load()
    trials = tried(claims, every)
    figures: dict[str, str] = {}
    folder = out.parent / "images" / out.stem
    for claim in dict.fromkeys(trial.claim.id for trial in trials):
        drawn = figure([trial for trial in trials if trial.claim.id == claim])
        if drawn is not None:
            (file,) = write_files(folder, claim, {"svg": drawn})
            figures[claim] = file.relative_to(out.parent).as_posix()
    text = page(trials, every, runs, figures, claims.levels, section())
    files = write_files(out.parent, out.stem, {"md": text})
    if options.keep is not None:
        write_archive(options.keep, runs)
        files.append(options.keep)
    console = Console(highlight=False)
    console.print(_table(trials))
    if without := _without(trials):
        console.print(without, style="dim", markup=False)
    show_files(console, files, left_out)


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("claims", _EXAMPLES, _DESCRIPTION)
    add = made.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUNS",
        help=f"run directories, folders of them, patterns, archives ({ENDING})",
    )
    add("--out", type=path_argument, required=True, metavar="FILE",
        help="the page, a Markdown file; its figures go to images/ next to it")  # fmt: skip
    add("--keep", type=path_argument, metavar="FILE",
        help=f"also keep what the page is made from, without models; the name ends in {ENDING}")  # fmt: skip
    return made


def _table(trials: Sequence[Trial]) -> Table:
    """Return the verdicts with their reasons, of claims on which there are runs or which need none."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("claim", "on"):
        table.add_column(head, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for trial in trials:
        if trial.task is not None or trial.claim.weights:
            where = "–" if trial.task is None else trial.task.label
            table.add_row(trial.claim.id, where, trial.outcome.verdict, trial.outcome.reason)
    return table


def _without(trials: Sequence[Trial]) -> str:
    """Return a line on the claims without runs, "" if there are none."""
    names = [trial.claim.id for trial in trials if trial.task is None and not trial.claim.weights]
    return f"no runs, so cannot tell: {', '.join(names)}" if names else ""
