"""Speed against the part of the weights that stays in memory: the forecast's curve, and what was measured on it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from residency.planner.plan import Plan
from residency.planner.streaming import READING_BYTES, Streaming, best_streaming, least_streaming
from residency.spec.model import ModelSpec
from residency.verifier.roofline import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, drawn_line, drawn_text, page

_CURVE_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A second or so of decoding, and what was forecast for it by how fast the machine was just before and after."""

    tokens_per_second: float
    forecast_tokens_per_second: float
    disk_bytes_per_second: float | None  # of reads of what streams, without computing; None where nothing does


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One budget: tokens per second and peak bytes, forecast and measured in a process of its own."""

    budget_bytes: int
    resident_part: float  # of the weights
    stretches: tuple[Stretch, ...]
    forecast_peak_bytes: float
    peak_bytes: float

    @property
    def tokens_per_second(self) -> float:
        """Of all stretches, as if each had as many tokens."""
        return statistics.harmonic_mean([each.tokens_per_second for each in self.stretches])

    @property
    def forecast_tokens_per_second(self) -> float:
        """The same of what was forecast for them."""
        return statistics.harmonic_mean([each.forecast_tokens_per_second for each in self.stretches])

    def to_data(self) -> dict[str, object]:
        """As JSON values."""
        return {
            **asdict(self),
            "tokens_per_second": self.tokens_per_second,
            "forecast_tokens_per_second": self.forecast_tokens_per_second,
        }


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The budgets between the least and enough for a plan whose weights all fit."""

    whole: Plan
    least: Streaming
    resident_seconds: float  # of a step with everything in memory

    @staticmethod
    def of(whole: Plan, model: ModelSpec, disk_bytes_per_second: float) -> "Sweep":
        """The sweep of a plan that streams nothing."""
        return Sweep(
            whole=whole,
            least=least_streaming(model, disk_bytes_per_second),
            resident_seconds=1 / whole.forecast.decode_tokens_per_second,
        )

    def budget_bytes(self, resident_part: float) -> int:
        """The budget in which about this part of the weights stays."""
        weights = self.whole.memory.weights
        room = self.least.buffer_bytes + resident_part * (weights - self.least.buffer_bytes)
        return self.whole.memory.peak - weights + READING_BYTES + int(room)

    def resident_part(self, plan: Plan) -> float:
        """The part of the weights that stays in a plan of this sweep."""
        if plan.streaming is None:
            return 1.0
        return plan.streaming.resident_bytes / sum(plan.streaming.span_bytes)

    def forecast_of(self, plan: Plan, disk_bytes_per_second: float | None) -> float:
        """Tokens per second of one sequence by a plan of this sweep, where the disk gives so much."""
        if plan.streaming is None or disk_bytes_per_second is None:
            return 1 / self.resident_seconds
        streaming = replace(plan.streaming, disk_bytes_per_second=disk_bytes_per_second)
        return 1 / streaming.step_seconds(self.resident_seconds)

    def forecast(self, resident_part: float) -> float:
        """Tokens per second of one sequence where so much stays."""
        room_bytes = self.least.buffer_bytes + int(resident_part * sum(self.least.span_bytes))
        best = best_streaming(self.least, room_bytes=room_bytes, resident_seconds=self.resident_seconds)
        return 1 / best.step_seconds(self.resident_seconds)


def sweep_svg(sweep: Sweep, points: Sequence[SweepPoint], title: str) -> str:
    """The forecast as a curve and the measurements as circles, tokens per second in powers of ten."""
    parts = [index / _CURVE_POINTS for index in range(_CURVE_POINTS)]
    curve = [(part, sweep.forecast(part)) for part in parts] + [(1.0, 1 / sweep.resident_seconds)]
    y = Scale.around([v for _, v in curve] + [point.tokens_per_second for point in points], HEIGHT - BOTTOM, TOP)
    lines = page(title)
    for percent in range(0, 101, 20):
        at = _x(percent / 100)
        lines.append(drawn_line(at, TOP, at, HEIGHT - BOTTOM, "grid", "#d9dde3", 1))
        lines.append(drawn_text(at, HEIGHT - BOTTOM + 20, f"{percent}%", anchor="middle", soft=True))
    for value in y.decades:
        lines.append(drawn_line(LEFT, y.at(value), WIDTH - RIGHT, y.at(value), "grid", "#d9dde3", 1))
        lines.append(drawn_text(LEFT - 8, y.at(value) + 4, f"{value:g}", anchor="end", soft=True))
    lines.append(drawn_text(LEFT, TOP - 12, "tokens per second: forecast (line) and measured (circles)", soft=True))
    lines.append(drawn_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, "weights that stay in memory", anchor="middle"))
    path = " ".join(f"{_x(part):.1f},{y.at(value):.1f}" for part, value in curve)
    lines.append(f'<polyline class="roof" points="{path}" fill="none" stroke="#22262c" stroke-width="2"/>')
    for point in points:
        at_x, at_y = _x(point.resident_part), y.at(point.tokens_per_second)
        lines.append(f'<circle class="decode" cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="#1f5fa8"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _x(part: float) -> float:
    return LEFT + (WIDTH - RIGHT - LEFT) * part
