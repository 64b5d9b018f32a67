"""Runs compared by their G-effect: `python -m launch.geffect RUNS… --out DIR`."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from launch.report import markdown
from launch.report.geffect.study import Compared, StudyRun, compared, long_rows, read_run, summary
from launch.report.geffect.study_charts import SPREAD, study_charts, styles
from launch.report.page import drawn, environment
from unlearn.errors import UserError
from unlearn.files import check_writable, replacing
from unlearn.guard import given_path, tool

_NOTE = (
    "Effects and cosines are means over the steps looked at, risks are those of the last one; then mean over "
    "n seeds ± half of the 95 % interval (Student's t). Effects of objectives with different scales do not "
    "compare in size; cosines do."
)


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m launch.geffect`."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.geffect",
        description="Compare runs that were made with probe=geffect: effects over the steps by method and by "
        "group of layers, by setting, implicit weights. Runs that differ in the seed alone are averaged.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="run directories, folders of them, or patterns such as 'runs/npo-*'; "
        "those in which no probe looked are left out",
    )
    parser.add_argument(
        "--out",
        type=given_path,
        required=True,
        metavar="DIR",
        help="where geffect.html, geffect.md and geffect.csv go; made if missing",
    )
    given = parser.parse_args(arguments)
    check_writable(given.out, f"--out {given.out}")
    try:
        runs, left_out = find_runs(given.runs)
        files = write_study(runs, given.out)
    except ValueError as error:
        raise UserError(str(error)) from error
    for reason in dict.fromkeys(left_out.values()):
        names = [path.name for path, why in left_out.items() if why == reason]
        sys.stderr.write(f"left out, {reason}: {', '.join(names)}\n")
    sys.stdout.write("".join(f"{file}\n" for file in files))


def find_runs(given: Sequence[str]) -> tuple[list[StudyRun], dict[Path, str]]:
    """The runs under these directories and patterns, and the run directories that are left out and why.

    Raises:
        UserError: nothing is there, or no probe looked in any of it.
        ValueError: naming a file that cannot be read.
    """
    folders: dict[Path, None] = {}
    for each in given:
        found = [Path(path) for path in sorted(glob(str(given_path(each))))] or [given_path(each)]
        here = [run for path in found for run in _run_directories(path)]
        if not here:
            what = "no such directory or pattern" if not any(p.exists() for p in found) else "no run in it"
            raise UserError(f"{each}: {what} (a run directory has a history.jsonl)")
        folders |= dict.fromkeys(path.resolve() for path in here)
    runs: dict[tuple[str, str], StudyRun] = {}
    left_out = {}
    for folder in folders:
        run = read_run(folder)
        if run is None:
            left_out[folder] = "no G-effect in it"
            continue
        first = runs.setdefault((run.key, repr(run.seed)), run)
        if first is not run:
            left_out[folder] = f"the same configuration and seed as {first.path.name}"
    if not runs:
        raise UserError(
            f"no G-effect in {', '.join(given)}: its history.jsonl has no geffect/… keys. "
            "Make the runs with probe=geffect."
        )
    return list(runs.values()), left_out


def _run_directories(path: Path) -> list[Path]:
    if (path / "history.jsonl").is_file():
        return [path]
    return [each.parent for each in sorted(path.glob("*/history.jsonl"))] if path.is_dir() else []


def write_study(runs: Sequence[StudyRun], out: Path) -> list[Path]:
    """Write geffect.html, geffect.md and geffect.csv, each whole or not at all, and return their paths."""
    groups = compared(runs)
    out.mkdir(parents=True, exist_ok=True)
    texts = {"html": _page(groups), "md": _markdown(groups), "csv": _csv(groups)}
    files = []
    for ending, text in texts.items():
        file = out / f"geffect.{ending}"
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def _page(groups: Sequence[Compared]) -> str:
    heads, rows = summary(groups)
    return (
        environment()
        .get_template("geffectstudy.html.j2")
        .render(
            heads=heads,
            rows=rows,
            note=_NOTE,
            spread=SPREAD,
            legend=[(label, *look) for label, look in styles(groups).items()],
            runs=sum(len(group.runs) for group in groups),
            **drawn(study_charts(groups)),
        )
    )


def _markdown(groups: Sequence[Compared]) -> str:
    return f"# G-effect\n\n{_NOTE}\n\n{markdown.table(*summary(groups))}\n"


def _csv(groups: Sequence[Compared]) -> str:
    heads, rows = long_rows(groups)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
