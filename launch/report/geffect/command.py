"""Compare runs by their G-effect: `unlearn geffect RUNS… --out DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.report import markdown
from launch.report.discover import left_out_lines
from launch.report.geffect.study import Compared, compared, long_rows, summary
from launch.report.geffect.study_charts import SPREAD, study_charts, styles
from launch.report.geffect.study_runs import StudyRun, find_runs, write_archive
from launch.report.output import csv_text, write_files
from launch.report.packed import ENDING, check_name
from launch.report.render import render
from unlearn.arguments import Parser, path_argument
from unlearn.errors import UserError
from unlearn.files import check_writable
from unlearn.guard import tool

_NOTE = (
    "Effects and cosines are means over the steps that were probed, risks are those of the last one; then "
    "mean over n seeds ± half of the 95 % interval (Student's t). Largest unlearning effect: by size, of a "
    "run's steps. Embedding, shallow and deep share: of these layers in the sum of |unlearning effect| over "
    "the groups of layers, which may differ in their number of layers. Retaining effect < 0: the share of "
    "such steps, with that before training if it was probed. Weight–harm correlation: rank correlation of a "
    "forget token's implicit weight with ⟨∇R(retain), ∇risk of the token⟩, which unlearning the token adds "
    "to the retain risk; below zero, the weights spare it. Effects of objectives with different scales "
    "do not compare in size; cosines do."
)
_DESCRIPTION = """\
Compare runs that were made with probe=geffect: effects over the steps by method and by group of layers, by
setting, implicit weights. Runs that differ in the seed alone are averaged."""
_EXAMPLES = (
    "runs --out study",
    "'runs/npo-*' 'runs/wga-*' --out study",
    "runs --out study --keep study.json.gz",
)


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn geffect`."""
    options = parser().parse_args(arguments)
    check_name(options.keep)
    check_writable(options.out, f"--out {options.out}")
    runs, left_out = find_runs(options.runs)
    try:
        files = write_study(runs, options.out)
    except ValueError as error:
        raise UserError(str(error)) from error
    if options.keep is not None:
        write_archive(options.keep, runs)
        files.append(options.keep)
    sys.stderr.write("".join(f"{line}\n" for line in left_out_lines(left_out)))
    sys.stdout.write("".join(f"{file}\n" for file in files))


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("geffect", _EXAMPLES, _DESCRIPTION)
    made.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="run directories, folders that contain some, patterns such as 'runs/npo-*', or archives "
        f"({ENDING}); runs that were not probed are left out",
    )
    made.add_argument(
        "--out",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="where geffect.html, geffect.md and geffect.csv go; made if missing",
    )
    made.add_argument(
        "--keep",
        type=path_argument,
        metavar="FILE",
        help="also keep what the table is made from, without examples and tokens; the name ends in "
        f"{ENDING}. The file is read as RUNS, so that further runs can be added to it",
    )
    return made


def write_study(runs: Sequence[StudyRun], out: Path) -> list[Path]:
    """Write geffect.html, geffect.md and geffect.csv, each whole or not at all, and return their paths.

    Raises:
        ValueError: a table of a run cannot be read; with its name.
    """
    groups = compared(runs)
    texts = {
        "html": _page(groups),
        "md": f"# G-effect\n\n{_NOTE}\n\n{markdown.table(*summary(groups))}\n",
        "csv": csv_text(*long_rows(groups)),
    }
    return write_files(out, "geffect", texts)


def _page(groups: Sequence[Compared]) -> str:
    heads, rows = summary(groups)
    legend = [(label, *look) for label, look in styles(groups).items()]
    values = {
        "heads": heads, "rows": rows, "legend": legend, "note": _NOTE, "spread": SPREAD,
        "runs": sum(len(group.runs) for group in groups),
    }  # fmt: skip
    return render("geffectstudy.html.j2", values, study_charts(groups), clean=True)
