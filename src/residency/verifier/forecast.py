"""A forecast held against its run: by class of memory, in total, and by speed."""

import statistics
from dataclasses import dataclass

from residency.engine.engine import Engine, Progress, Stream
from residency.engine.report import Report
from residency.ledger.kv import pages_of_a_sequence
from residency.planner.plan import MemoryBytes, Plan
from residency.planner.speed import DECODE_CONTEXT_TOKENS

GENERATED_TOKENS = 64
_TEXT = "The tide rises and falls twice a day, and the boats in the harbour rise and fall with it. "


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """By what part of the forecast a measurement may differ, upwards or downwards."""

    memory: float = 0.10  # of each class
    peak: float = 0.05  # of all classes together
    speed: float = 0.25
    least_bytes: int = 2 * 1024**2  # smaller differences of memory hold in any case


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure, forecast and measured."""

    name: str
    unit: str  # "bytes" or "tokens/s"
    forecast: float
    measured: float
    allowed: float  # difference, in the unit

    @property
    def difference(self) -> float:
        """Measured less forecast."""
        return self.measured - self.forecast

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed."""
        return abs(self.difference) <= self.allowed

    def to_data(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "forecast": self.forecast,
            "measured": self.measured,
            "difference": self.difference,
            "allowed": self.allowed,
            "holds": self.holds,
        }


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An answer, token by token."""

    plan: Plan
    token_seconds: tuple[float, ...]  # from each token to the next

    @property
    def tokens_per_second(self) -> float:
        """Of the median token, as others take a processor away now and then. Where a disk is read, of all together: one
        token waits for what another has left to be read.
        """
        is_read = self.plan.streaming is not None or self.plan.paging is not None
        return 1 / (statistics.fmean if is_read else statistics.median)(self.token_seconds)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Two answers of one engine, under the conditions of the plan's forecasts."""

    speed: Decoded  # at the context that the forecast of decoding is for
    memory: Report  # a prompt that fills half of the context


def run_as_forecast(plan: Plan, *, answer_tokens: int = GENERATED_TOKENS, progress: Progress | None = None) -> Runs:
    """Run a plan as its forecast says, with answers of at most `answer_tokens`."""
    with Engine.open(plan, progress=progress) as engine:
        speed = speed_run(engine, answer_tokens)
        if progress is not None:
            progress("running", 1, 2)
        return Runs(speed=speed, memory=memory_run(engine, answer_tokens))


def speed_run(engine: Engine, answer_tokens: int) -> Decoded:
    """An answer at the context that the forecast of decoding is for."""
    stream = _answer(engine, min(DECODE_CONTEXT_TOKENS, engine.plan.context_tokens // 2), answer_tokens)
    return Decoded(plan=engine.plan, token_seconds=tuple(stream.token_seconds))


def memory_run(engine: Engine, answer_tokens: int) -> Report:
    """An answer to a prompt that fills half of the context."""
    return _answer(engine, engine.plan.context_tokens // 2, answer_tokens).report


def _answer(engine: Engine, context_tokens: int, answer_tokens: int) -> Stream:
    """At most so many tokens, in whose middle there are `context_tokens`."""
    tokens = engine.tokenizer.encode(_TEXT, add_special=True)
    generated = min(answer_tokens, max(1, engine.plan.context_tokens // 4))
    prompt_tokens = max(1, context_tokens - generated // 2)
    prompt = (tokens * (prompt_tokens // len(tokens) + 1))[:prompt_tokens]
    stream = engine.stream(prompt, max_tokens=generated, ignore_eos=True)
    for _ in stream:
        pass
    return stream


def compare(runs: Runs, tolerances: Tolerances) -> tuple[Comparison, ...]:
    """Memory, and the speed of decoding where at least two tokens came."""
    comparisons = compare_memory(runs.memory, tolerances)
    if not runs.speed.token_seconds:
        return comparisons
    expected = runs.speed.plan.forecast.decode_tokens_per_second
    decode = Comparison(
        name="decode",
        unit="tokens/s",
        forecast=expected,
        measured=runs.speed.tokens_per_second,
        allowed=expected * tolerances.speed,
    )
    return (*comparisons, decode)


def compare_memory(report: Report, tolerances: Tolerances) -> tuple[Comparison, ...]:
    """Every class of memory, and their sum, as "peak".

    The KV cache is reserved for the whole context and taken page by page: what is compared is what this run's tokens
    should have taken.
    """
    plan, measured = report.plan, report.memory
    forecast = MemoryBytes(
        weights=plan.memory.weights,
        kv_cache=_kv_bytes_of(plan, report.prompt_tokens + report.completion_tokens - 1),
        activations=plan.memory.activations,
        runtime=plan.memory.runtime,
    )
    classes = (
        _bytes(name, getattr(forecast, name), getattr(measured, name), tolerances.memory, tolerances.least_bytes)
        for name in ("weights", "kv_cache", "activations", "runtime")
    )
    return (*classes, _bytes("peak", forecast.peak, measured.peak, tolerances.peak, tolerances.least_bytes))


def _bytes(name: str, forecast: int, measured: int, tolerance: float, least_bytes: int) -> Comparison:
    allowed = max(forecast * tolerance, least_bytes)
    return Comparison(name=name, unit="bytes", forecast=forecast, measured=measured, allowed=allowed)


def _kv_bytes_of(plan: Plan, num_tokens: int) -> int:
    """Pages that one sequence of so many tokens takes, in all layers. The last token of an answer is never cached."""
    return sum(
        group.page_bytes
        * len(group.layers)
        * pages_of_a_sequence(
            num_tokens,
            page_tokens=plan.page_tokens,
            window_tokens=group.window_tokens,
            chunk_tokens=plan.chunk_tokens,
        )
        for group in plan.kv_groups
    )
