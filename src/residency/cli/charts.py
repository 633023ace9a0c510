"""Charts as SVG for a page that is light or dark: their colours are the page's variables.

Every function gives one <svg> element, drawn 720 units wide.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from residency.units import binary_bytes, operations_rate

WIDTH = 720
_LETTER, _LINE = 7.2, 15  # width and height of a letter, about
_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 24, 18, 46


@dataclass(frozen=True, kw_only=True)
class Part:
    """One class of a bar."""

    name: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One device, its parts from left to right; `whole_bytes` is the frame around them."""

    name: str
    parts: tuple[Part, ...]
    whole_bytes: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """A marked point of a chart."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis from `low` to `high`, with the values that are marked and how each is written."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_logarithmic: bool = False

    def part(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.is_logarithmic:
            value, low, high = (math.log(max(each, 1e-300)) for each in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))


def even_ticks(high: float, write: Callable[[float], str], *, about: int = 5) -> tuple[tuple[float, str], ...]:
    """About so many ticks from 0 to `high`, apart by 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(high / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if high / (factor * power) <= about)
    return tuple((index * step, write(index * step)) for index in range(int(high / step) + 1))


def bars(rows: Sequence[Bar]) -> str:
    """Stacked bars, one for each row; what goes beyond a row's frame stands outside of it."""
    longest = max(max(row.whole_bytes, sum(part.num_bytes for part in row.parts)) for row in rows)
    scale = (WIDTH - _RIGHT) / max(1, longest)
    lines = []
    for index, row in enumerate(rows):
        top = 22 + index * 64
        lines.append(f'<text x="0" y="{top - 6}">{escape(row.name)}</text>')
        left = 0.0
        for part in row.parts:
            width = part.num_bytes * scale
            label = f"{part.name}: {binary_bytes(part.num_bytes)}"
            lines.append(
                f'<rect class="{_class(part.name)}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="28">'
                f"<title>{escape(label)}</title></rect>"
            )
            left += width
        lines.append(f'<rect class="frame" x="0" y="{top}" width="{row.whole_bytes * scale:.1f}" height="28"/>')
    return _svg(22 + 64 * len(rows) - 20, "memory by device and class", lines)


def curve(x: Axis, y: Axis, values: Sequence[tuple[float, float]], points: Sequence[Point], *, name: str) -> str:
    """A line through `values` with marked points under it, or the points alone."""
    path = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in values)
    lines = [*_axes(x, y), f'<polyline class="line" points="{path}"/>' if values else ""]
    lines += _marks(x, y, points, below=bool(values))
    return _svg(320, name, lines)


def roofline(points: Sequence[Point], *, bytes_per_second: float, operations_per_second: float) -> str:
    """The two roofs, and each kind of step under them, by operations a byte."""
    ridge = operations_per_second / bytes_per_second
    low, high = 10.0 ** math.floor(math.log10(min(0.3, ridge))), 10.0 ** math.ceil(math.log10(ridge * 30))
    least = 10.0 ** math.floor(math.log10(low * bytes_per_second * 3))
    x = Axis(
        title="operations a byte", low=low, high=high, ticks=_powers(low, high, "{:g}".format), is_logarithmic=True
    )
    y = Axis(
        title="operations a second",
        low=least,
        high=operations_per_second * 3,
        ticks=_powers(least, operations_per_second * 3, operations_rate),
        is_logarithmic=True,
    )
    roof = [(low, low * bytes_per_second), (ridge, operations_per_second), (high, operations_per_second)]
    return curve(x, y, roof, points, name="roofline of decoding and of prompts")


def _powers(low: float, high: float, write: Callable[[float], str]) -> tuple[tuple[float, str], ...]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return tuple((10.0**power, write(10.0**power)) for power in range(first, last + 1))


def _axes(x: Axis, y: Axis) -> list[str]:
    bottom, right = 320 - _BOTTOM, WIDTH - _RIGHT
    lines = [f'<path class="axis" d="M{_LEFT},{_TOP}V{bottom}H{right}"/>']
    for value, text in x.ticks:
        at = _x(x, value)
        lines.append(f'<path class="grid" d="M{at:.1f},{_TOP}V{bottom}"/>')
        lines.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    for value, text in y.ticks:
        at = _y(y, value)
        lines.append(f'<path class="grid" d="M{_LEFT},{at:.1f}H{right}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    middle = (_LEFT + right) / 2
    lines.append(f'<text class="title" x="{middle:.0f}" y="312" text-anchor="middle">{escape(x.title)}</text>')
    turned = f'transform="translate(14,{(_TOP + bottom) / 2:.0f}) rotate(-90)"'
    return [*lines, f'<text class="title" {turned} text-anchor="middle">{escape(y.title)}</text>']


def _marks(x: Axis, y: Axis, points: Sequence[Point], *, below: bool) -> list[str]:
    """The points with their names beside them, each moved on until it hides no other, and no point."""
    lines = []
    taken = [(_x(x, each.x) - 6, _x(x, each.x) + 6, _y(y, each.y) + 4) for each in points]  # left, right and height
    for point in points:
        at, height = _x(x, point.x), _y(y, point.y)
        width = _LETTER * len(point.name)
        is_right = at + width > WIDTH - _RIGHT
        left = at - 9 - width if is_right else at + 9
        text = height + 16 if below else height - 7
        while any(left < right and first < left + width and abs(text - up) < _LINE for first, right, up in taken):
            text += _LINE if below else -_LINE
        taken.append((left, left + width, text))
        name, anchor = escape(point.name), "end" if is_right else "start"
        lines.append(f'<circle class="mark" cx="{at:.1f}" cy="{height:.1f}" r="5"><title>{name}</title></circle>')
        shift = -9 if is_right else 9
        lines.append(f'<text x="{at + shift:.1f}" y="{text:.1f}" text-anchor="{anchor}">{name}</text>')
    return lines


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.part(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return 320 - _BOTTOM - axis.part(value) * (320 - _BOTTOM - _TOP)


def _svg(height: int, name: str, lines: Sequence[str]) -> str:
    body = "\n".join(line for line in lines if line)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">\n{body}\n</svg>'


def _class(name: str) -> str:
    return name.lower().replace(" ", "-")
