"""Small charts as SVG text: axes with ticks, points, crosses of intervals, lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
"""Distinguishable without red and green (Okabe and Ito), and two more."""
INK, GREY, FAINT = "#222222", "#666666", "#e3e3e3"
_TICKS = 6
_FONT = 'font-family="system-ui, Segoe UI, Roboto, sans-serif"'


@dataclass(frozen=True)
class Scale:
    """From values to pixels: `low` is at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self._bent(each) for each in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values between the ends: powers of ten on a logarithmic scale."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            apart = max(1, math.ceil((last - first) / _TICKS))
            return [10.0**power for power in range(last, first - 1, -apart)]
        rough = (self.high - self.low) / _TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9)
        return [(math.ceil(self.low / step - 1e-9) + i) * step for i in range(count + 1)]

    def _bent(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def fitted(
    values: Sequence[float], start: float, end: float, *, logarithmic: bool = False, unit: bool = False
) -> Scale:
    """Return a scale with room at both ends of the values; `unit`: from 0 to 1 if they fill half of that."""
    low, high = min(values), max(values)
    if logarithmic:
        return Scale(low / 3, min(high * 3, 2.0), start, end, True)
    if unit and low >= 0 and high <= 1 and high - low > 0.5:
        return Scale(-0.04, 1.04, start, end)
    room = 0.08 * (high - low) or 0.5
    return Scale(low - room, high + room, start, end)


@dataclass
class Picture:
    """An SVG that is drawn piece by piece; sizes are in pixels."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def frame(self, x: Scale, y: Scale, across: str, up: str, heading: str = "") -> None:
        """Draw grid, ticks and the labels of both axes, and a heading above."""
        for value in x.ticks():
            self.line([(x(value), y.start), (x(value), y.end)], FAINT)
            self.text(x(value), y.start + 18, _number(value), colour=GREY, anchor="middle")
        for value in y.ticks():
            self.line([(x.start, y(value)), (x.end, y(value))], FAINT)
            self.text(x.start - 8, y(value) + 4, _number(value), colour=GREY, anchor="end")
        self.line([(x.start, y.end), (x.start, y.start), (x.end, y.start)], GREY)
        middle = (y.start + y.end) / 2
        self.text((x.start + x.end) / 2, y.start + 40, across, anchor="middle")
        left = x.start - 48
        self.text(left, middle, up, anchor="middle", turned=True)
        self.text(x.start, y.end - 14, heading, bold=True)

    def line(self, points: Sequence[Point], colour: str, width: float = 1, dashes: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
        )

    def dot(self, at: Point, radius: float, colour: str, opacity: float = 1) -> None:
        self.parts.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" fill="{colour}" '
            f'opacity="{opacity:g}"/>'
        )

    def diamond(self, at: Point, size: float, colour: str) -> None:
        (x, y), s = at, size
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in ((x, y - s), (x + s, y), (x, y + s), (x - s, y)))
        self.parts.append(f'<polygon points="{corners}" fill="{colour}"/>')

    def text(
        self, x: float, y: float, text: str, *, colour: str = INK, anchor: str = "start", bold: bool = False,
        turned: bool = False,
    ) -> None:  # fmt: skip
        if not text:
            return
        more = ' font-weight="600"' if bold else ""
        more += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{more}>'
            f"{escape(text)}</text>"
        )

    def svg(self) -> str:
        """Return the picture on a white ground."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {_FONT} font-size="13">'
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        body = "\n".join([f"<title>{escape(self.title)}</title>", ground, *self.parts])
        return f"{head}\n{body}\n</svg>\n"


def _number(value: float) -> str:
    return f"{value:.6g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
