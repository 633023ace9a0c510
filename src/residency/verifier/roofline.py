"""The roofline as a picture: operations per second over operations per byte, both logarithmic, in SVG.

S. Williams, A. Waterman, D. Patterson: Roofline, an insightful visual performance model (CACM 52/4, 2009).
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from residency.errors import UsageError
from residency.units import operations_rate, rate

WIDTH, HEIGHT = 860, 560
LEFT, RIGHT, TOP, BOTTOM = 92, 28, 64, 64
_LABEL_HEIGHT = 15
_COLOURS = {"prefill": "#b4521d", "decode": "#1f5fa8"}

# Attributes are for a light page and for programs that know no style sheets; the sheet is for a dark page.
_STYLE = """
text { font-family: Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif; }
@media (prefers-color-scheme: dark) {
  .page { fill: #14171c; } .ink { fill: #e8eaed; } .soft { fill: #a9b0ba; } .grid { stroke: #333a44; }
  .roof { stroke: #e8eaed; } .prefill { fill: #f0a070; } .decode { fill: #7db4f5; } .leader { stroke: #6b7480; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured step."""

    label: str
    kind: Literal["prefill", "decode"]
    operations_per_byte: float
    operations_per_second: float


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A logarithmic axis: from `least` to `most`, whole powers of ten, along pixels `start` to `end`."""

    least: float
    most: float
    start: float
    end: float

    @staticmethod
    def around(values: Sequence[float], start: float, end: float) -> "Scale":
        """An axis of whole decades that holds all values, which are positive."""
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return Scale(least=10.0**low, most=10.0 ** max(high, low + 1), start=start, end=end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        part = math.log(value / self.least) / math.log(self.most / self.least)
        return self.start + (self.end - self.start) * part

    @property
    def decades(self) -> list[float]:
        """The powers of ten on the axis."""
        low, high = round(math.log10(self.least)), round(math.log10(self.most))
        return [10.0**power for power in range(low, high + 1)]


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The geometry of the picture: the roofs and the points under them."""

    bytes_per_second: float
    operations_per_second: float  # of int8 dot products
    prompt_operations_per_second: float  # of what prompts go through; as many where it is the same
    points: tuple[Point, ...]

    @property
    def peaks(self) -> dict[str, float]:
        """The flat roofs by name."""
        if self.prompt_operations_per_second == self.operations_per_second:
            return {"matrix products": self.operations_per_second}
        return {"matrix products": self.operations_per_second, "of prompts": self.prompt_operations_per_second}

    @property
    def ridge(self) -> float:
        """The operations per byte from which on computing is the limit, whatever is computed."""
        return max(self.peaks.values()) / self.bytes_per_second

    def roof(self, operations_per_byte: float) -> float:
        """The most operations per second at so many operations per byte."""
        return min(max(self.peaks.values()), operations_per_byte * self.bytes_per_second)

    @property
    def x(self) -> Scale:
        """The axis of operations per byte."""
        values = [point.operations_per_byte for point in self.points]
        return Scale.around([*values, self.ridge, 1.0], LEFT, WIDTH - RIGHT)

    @property
    def y(self) -> Scale:
        """The axis of operations per second; larger is higher up."""
        values = [point.operations_per_second for point in self.points]
        least = self.roof(self.x.least)
        return Scale.around([*values, least, max(self.peaks.values()) * 1.5], HEIGHT - BOTTOM, TOP)


def roofline_svg(roofline: Roofline, title: str) -> str:
    """The picture as SVG text, legible on a light and on a dark page."""
    x, y = roofline.x, roofline.y
    parts = [
        *page(title),
        *_grid(x, y),
        *_roofs(roofline, x, y),
        *_points(roofline, x, y),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def page(title: str) -> list[str]:
    """What a picture begins with; "</svg>" ends it."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        drawn_text(LEFT, 30, title, size=17, weight="600"),
    ]


def write_png(svg: str, path: Path) -> None:
    """The picture as pixels, twice as many as its size says. UsageError where resvg is missing."""
    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError:
        raise UsageError("a PNG needs resvg; pip install 'residency[png]', or use --svg.") from None
    path.write_bytes(bytes(resvg.svg_to_bytes(svg_string=svg, zoom=2)))


def _grid(x: Scale, y: Scale) -> list[str]:
    lines = []
    for value in x.decades:
        at = x.at(value)
        lines.append(drawn_line(at, TOP, at, HEIGHT - BOTTOM, "grid", "#d9dde3", 1))
        lines.append(drawn_text(at, HEIGHT - BOTTOM + 20, f"{value:g}", anchor="middle", soft=True))
    for value in y.decades:
        at = y.at(value)
        lines.append(drawn_line(LEFT, at, WIDTH - RIGHT, at, "grid", "#d9dde3", 1))
        lines.append(
            drawn_text(
                LEFT - 8, at + 4, operations_rate(value).replace(".00", "").replace(".0", ""), anchor="end", soft=True
            )
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(drawn_text(middle, HEIGHT - 18, "operations per byte read from memory", anchor="middle"))
    lines.append(drawn_text(LEFT, TOP - 12, "operations per second", soft=True))
    return lines


def _roofs(roofline: Roofline, x: Scale, y: Scale) -> list[str]:
    ridge, peak = roofline.ridge, max(roofline.peaks.values())
    start = max(x.least, y.least / roofline.bytes_per_second)
    left, right = x.at(start), x.at(x.most)
    corner_x, corner_y = x.at(ridge), y.at(peak)
    low = y.at(roofline.roof(start))
    slope = math.degrees(math.atan2(corner_y - low, corner_x - left))
    along = 0.3
    near_x, near_y = left + (corner_x - left) * along, low + (corner_y - low) * along
    name = f"memory: {rate(roofline.bytes_per_second)}"
    flat = []
    for label, operations in roofline.peaks.items():
        begin, level = x.at(operations / roofline.bytes_per_second), y.at(operations)
        flat.append(drawn_line(begin, level, right, level, "roof", "#22262c", 2))
        flat.append(drawn_text(right, level - 8, f"{label}: {operations_rate(operations)}", anchor="end"))
    return [
        drawn_line(left, low, corner_x, corner_y, "roof", "#22262c", 2),
        *flat,
        f'<g transform="translate({near_x:.1f} {near_y:.1f}) rotate({slope:.1f})">{drawn_text(0, -8, name)}</g>',
    ]


def _points(roofline: Roofline, x: Scale, y: Scale) -> list[str]:
    """Circles, and labels beside them; a label that would cover another or a circle moves down, with a leader."""
    parts = []
    circles = [(x.at(each.operations_per_byte), y.at(each.operations_per_second)) for each in roofline.points]
    taken = [(at_x - 7, at_x + 7, at_y + 4) for at_x, at_y in circles]  # left, right and baseline of labels and circles
    for point in sorted(roofline.points, key=lambda each: y.at(each.operations_per_second)):
        at_x, at_y = x.at(point.operations_per_byte), y.at(point.operations_per_second)
        width = 7.2 * len(point.label)
        to_left = at_x + 12 + width > WIDTH - RIGHT
        begin = at_x - 12 - width if to_left else at_x + 12
        baseline = at_y + 4
        while any(a < begin + width and begin < b and abs(c - baseline) < _LABEL_HEIGHT for a, b, c in taken):
            baseline += 1
        taken.append((begin, begin + width, baseline))
        edge = at_x - 10 if to_left else at_x + 10
        parts.append(drawn_line(at_x, at_y, edge, baseline - 4, "leader", "#9aa3ad", 1))
        parts.append(
            f'<circle class="{point.kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="{_COLOURS[point.kind]}"/>'
        )
        parts.append(drawn_text(begin, baseline, point.label, size=12))
    return parts


def drawn_text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 13,
    anchor: str = "start",
    weight: str = "400",
    soft: bool = False,
) -> str:
    """Words at a pixel, soft ones for what is beside the point."""
    colour, kind = ("#5a626d", "soft") if soft else ("#16191d", "ink")
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
        f'font-weight="{weight}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
    )


def drawn_line(x1: float, y1: float, x2: float, y2: float, kind: str, colour: str, width: int) -> str:
    """A line of a class of the style sheet, in a colour for light pages."""
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )
