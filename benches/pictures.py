"""Draw the runs of a sweep as SVG: the trade-off of its methods, and what was measured on the way.

`python -m benches.pictures RUNS… --out DIR` writes `trade-off.svg` and, of runs with `eval.every_steps`,
`curves.svg`. The pictures of docs/from-zero.md are of the runs that its commands make, and
docs/images/trade-off.svg of `unlearn -m method=grad_diff,npo,satimp,simnpo seed=0,1,2 hardware.threads=1`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.metric_catalog import info, trade_off_pairs
from launch.report.compare.command import make
from launch.report.compare.discover import find
from launch.report.compare.rows import Comparison, Row
from launch.report.output import write_files
from launch.report.statistics import is_logarithmic, mean
from launch.report.svg import COLOURS, GREY, INK, Picture, Point, Scale, fitted
from launch.report.traces import SMALLEST_P, label, number
from unlearn.arguments import path_argument
from unlearn.errors import UserError
from unlearn.guard import tool

CURVES = ("tofu/forget/probability", "tofu/retain/probability")
_UNIT = "0 to 1"


def main_pair(comparison: Comparison) -> tuple[str, str]:
    """Return the metrics of utility and forgetting that all rows have, those of a benchmark first.

    Raises:
        UserError: there are none.
    """
    rows = [*comparison.rows]
    keys = {key for row in rows for run in row.runs for key in run.results}
    pairs = trade_off_pairs(key for key in keys if all(row.mean(key).n for row in rows))
    if not pairs:
        raise UserError(
            "no metric of utility and one of forgetting of the same benchmark were measured in all runs"
        )
    return pairs[0]


def trade_off(comparison: Comparison, across: str, up: str) -> str:
    """Draw a point for each run, the mean of each row with its intervals, and the anchors."""
    picture = Picture(680, 440, f"{label(up)} against {label(across)}")
    every = [*comparison.rows, *comparison.anchors]
    x = _scale(across, every, 76, 500)
    y = _scale(up, every, 380, 40)
    picture.frame(x, y, _titled(across), _titled(up))
    for row, colour in zip(comparison.rows, _colours(comparison.rows), strict=True):
        for run in row.runs:
            if (at := _at(run.results, across, up, x, y)) is not None:
                picture.dot(at, 3.5, colour, 0.45)
        _cross(picture, row, across, up, x, y, colour)
    for row in comparison.anchors:
        _anchor(picture, row, across, up, x, y)
    _legend(picture, comparison.rows)
    return picture.svg()


def curves(comparison: Comparison, keys: Sequence[str]) -> str | None:
    """Draw means over the runs of each row at the steps at which all of them were measured.

    Returns None where no run has a value on the way.
    """
    lines = {key: [_line(row, key) for row in comparison.rows] for key in keys}
    drawn = [key for key in keys if any(lines[key])]
    if not drawn:
        return None
    panel = 300
    picture = Picture(96 + panel * len(drawn) + 160, 320, "measured while the methods train")
    for i, key in enumerate(drawn):
        points = [point for line in lines[key] for point in line]
        left = 76 + i * panel
        x = fitted([step for step, _ in points], left, left + panel - 80)
        unit = info(key).declared
        y = fitted([v for _, v in points], 260, 40, unit=unit is not None and unit.unit == _UNIT)
        picture.frame(x, y, "step", "", heading=_titled(key))
        for line, colour in zip(lines[key], _colours(comparison.rows), strict=True):
            picture.line([(x(step), y(value)) for step, value in line], colour, 2)
            for step, value in line:
                picture.dot((x(step), y(value)), 3, colour)
    _legend(picture, comparison.rows)
    return picture.svg()


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m benches.pictures`."""
    parser = argparse.ArgumentParser(prog="python -m benches.pictures", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="as for a comparison")
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR")
    parser.add_argument("--across", metavar="METRIC", help="of utility; by default the benchmark's own")
    parser.add_argument("--up", metavar="METRIC", help="of forgetting")
    parser.add_argument("--curves", nargs="+", default=CURVES, metavar="METRIC", help="a panel for each")
    options = parser.parse_args(arguments)
    comparison, _ = make(find(options.runs, {}))
    across, up = main_pair(comparison)
    drawn: Mapping[str, str | None] = {
        "trade-off": trade_off(comparison, options.across or across, options.up or up),
        "curves": curves(comparison, options.curves),
    }
    for name, text in drawn.items():
        if text is not None:
            files: list[Path] = write_files(options.out, name, {"svg": text})
            sys.stdout.write(f"{files[0]}\n")


def _scale(key: str, rows: Sequence[Row], start: float, end: float) -> Scale:
    values = [
        _drawable(key, value)
        for row in rows
        for run in row.runs
        if (value := number(run.results.get(key))) is not None and math.isfinite(value)
    ]
    declared = info(key).declared
    unit = declared is not None and declared.unit == _UNIT
    return fitted(values, start, end, logarithmic=is_logarithmic(key), unit=unit)


def _at(results: Mapping[str, float | None], across: str, up: str, x: Scale, y: Scale) -> Point | None:
    values = [number(results.get(key)) for key in (across, up)]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (x(_drawable(across, known[0])), y(_drawable(up, known[1]))) if len(known) == 2 else None


def _cross(picture: Picture, row: Row, across: str, up: str, x: Scale, y: Scale, colour: str) -> None:
    """Draw a row's mean, and its 95 % intervals as far as they are in the picture."""
    both = row.mean(across), row.mean(up)
    at = _at({across: both[0].mean, up: both[1].mean}, across, up, x, y)
    if at is None:
        return
    for key, own, scale, turned in ((across, both[0], x, False), (up, both[1], y, True)):
        if not math.isnan(own.low):
            ends = [
                scale(_drawable(key, min(max(value, scale.low), scale.high))) for value in (own.low, own.high)
            ]
            points = [(at[0], end) if turned else (end, at[1]) for end in ends]
            picture.line(points, colour, 1.5)
    picture.dot(at, 7, colour)


def _anchor(picture: Picture, row: Row, across: str, up: str, x: Scale, y: Scale) -> None:
    """Draw a target or a retain model; one that has only one of the two metrics is a line across."""
    colour = INK if row.kind == "target" else GREY
    values = {key: row.mean(key).mean for key in (across, up)}
    if (at := _at(values, across, up, x, y)) is not None:
        picture.diamond(at, 7, colour)
        picture.text(at[0] - 12, at[1] + 4, row.label, anchor="end")
    elif not math.isnan(values[across]):
        place = x(_drawable(across, values[across]))
        picture.line([(place, y.start), (place, y.end)], colour, 1.5, "4 4")
        picture.text(place - 6, (y.start + y.end) / 2, row.label, anchor="middle", turned=True)
    elif not math.isnan(values[up]):
        place = y(_drawable(up, values[up]))
        picture.line([(x.start, place), (x.end, place)], colour, 1.5, "4 4")
        picture.text(x.start + 6, place - 6, row.label)


def _line(row: Row, key: str) -> list[Point]:
    measured = [
        {each["step"]: value for each in run.history() if (value := number(each.get(key))) is not None}
        for run in row.runs
    ]
    common = sorted(set.intersection(*map(set, measured))) if measured else []
    return [(step, mean(key, [{key: values[step]} for values in measured]).mean) for step in common]


def _legend(picture: Picture, rows: Sequence[Row]) -> None:
    for i, (row, colour) in enumerate(zip(rows, _colours(rows), strict=True)):
        picture.dot((picture.width - 148, 48 + 24 * i), 6, colour)
        picture.text(picture.width - 134, 52 + 24 * i, row.label)


def _colours(rows: Sequence[Row]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(rows))]


def _titled(key: str) -> str:
    """Write a metric with its arrow."""
    return f"{label(key)} {info(key).direction[:1]}".strip()


def _drawable(key: str, value: float) -> float:
    return max(value, SMALLEST_P) if is_logarithmic(key) else value


if __name__ == "__main__":
    sys.exit(main())
