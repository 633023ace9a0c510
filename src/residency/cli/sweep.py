"""`residency bench --sweep-memory`: speed and peak by the part of the weights that stays, in a process for each."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from residency.cli.options import PlanOptions
from residency.cli.prepare import prepare_first
from residency.cli.progress import Progress
from residency.cli.stretches import stretches
from residency.cli.tables import columns
from residency.engine.calibrate import read_kernel
from residency.engine.planning import plan_rows
from residency.errors import UsageError
from residency.hardware import Machine
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.planner.explain import speed
from residency.planner.streaming import READERS
from residency.spec.opening import open_checkpoint
from residency.store.memory_rate import memory_read_rates
from residency.units import mib, rate
from residency.verifier.sweep import Stretch, Sweep, SweepPoint

RESIDENT_PARTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CONTEXT_TOKENS = 512
STRETCHES = 10  # of decoding, with reads of the disk before, between and after them
STRETCH_SECONDS = 0.6  # about
STRETCH_TOKENS = (3, 97)  # at least and at most; the first is not counted
READING_SECONDS = 0.4


def sweep_memory(
    path: Path, machine: Machine, *, threads: int | None, progress: Progress
) -> tuple[Sweep, list[SweepPoint]]:
    """Run the model in budgets from the least to enough. MachineError without a disk, UsageError
    for a mixture; errors of the runs as theirs.

    What is forecast goes by how fast memory is read beside each run, and beside each second of it by how fast what
    streams is read into the run's own buffers while it computes nothing: what others share changes that quickly.
    """
    whole = plan_rows(path, context=CONTEXT_TOKENS, threads=threads, machine=machine)
    model = model_spec(open_checkpoint(path))
    if any(layer.experts for layer in model.layers):
        raise UsageError(f"{model.name} is a mixture of experts, whose speed follows its routes; use --expert-trace.")
    prepare_first(str(path), PlanOptions(context_tokens=CONTEXT_TOKENS, threads=threads))
    sweep = Sweep.of(whole, model, machine.tier("disk").read_bytes_per_second(READERS))
    points: list[SweepPoint] = []
    for done, part in enumerate(RESIDENT_PARTS):
        progress("running in ever more memory", done, len(RESIDENT_PARTS))
        beside = _with_memory_rate(machine, whole)
        plan = plan_rows(path, context=CONTEXT_TOKENS, threads=threads, machine=beside)
        sweep = replace(sweep, resident_seconds=1 / plan.forecast.decode_tokens_per_second)
        budget_bytes = sweep.budget_bytes(part)
        plan = plan_rows(path, memory=budget_bytes, context=CONTEXT_TOKENS, threads=threads, machine=beside)
        points.append(_point(sweep, plan))
    progress("running in ever more memory", len(RESIDENT_PARTS), len(RESIDENT_PARTS))
    rates = [each.disk_bytes_per_second for point in points for each in point.stretches if each.disk_bytes_per_second]
    return replace(sweep, least=replace(sweep.least, disk_bytes_per_second=statistics.median(rates))), points


def _with_memory_rate(machine: Machine, whole: Plan) -> Machine:
    """The machine with its memory as fast as it is read now, over and over as many bytes as the weights have."""
    rates = memory_read_rates(
        read_kernel(), max_threads=whole.threads, buffer_bytes=whole.memory.weights, limit_seconds=READING_SECONDS
    )
    tiers = (replace(tier, read_rates=rates) if tier.kind == "ram" else tier for tier in machine.tiers)
    return replace(machine, tiers=tuple(tiers))


def _point(sweep: Sweep, plan: Plan) -> SweepPoint:
    """One budget: stretches of decoding between reads of what streams."""
    fewest, most = STRETCH_TOKENS
    tokens = min(max(int(plan.forecast.decode_tokens_per_second * STRETCH_SECONDS), fewest), most)
    with stretches(plan, tokens=tokens) as run:
        run.decode()  # the prompt is computed, pages are touched
        streams = plan.streaming is not None
        disk = [run.read() if streams else None]
        decoded: list[float] = []
        for _ in range(STRETCHES):
            decoded.append(run.decode())
            disk.append(run.read() if streams else None)
        peak = next(each for each in run.end() if each.name == "peak")
    beside = [None if before is None or after is None else (before + after) / 2 for before, after in pairwise(disk)]
    return SweepPoint(
        budget_bytes=plan.budget_bytes,
        resident_part=sweep.resident_part(plan),
        stretches=tuple(
            Stretch(
                tokens_per_second=measured,
                forecast_tokens_per_second=sweep.forecast_of(plan, disk_rate),
                disk_bytes_per_second=disk_rate,
            )
            for measured, disk_rate in zip(decoded, beside, strict=True)
        ),
        forecast_peak_bytes=peak.forecast,
        peak_bytes=peak.measured,
    )


def sweep_lines(points: Sequence[SweepPoint]) -> list[str]:
    """The table for people."""
    head = ["memory", "weights that stay", "disk", "tokens/s", "forecast", "", "peak", "forecast", ""]
    rows = [
        [
            mib(each.budget_bytes),
            f"{each.resident_part:.0%}",
            _spread([stretch.disk_bytes_per_second or 0.0 for stretch in each.stretches], rate),
            _spread([stretch.tokens_per_second for stretch in each.stretches], speed),
            speed(each.forecast_tokens_per_second),
            f"{each.tokens_per_second / each.forecast_tokens_per_second - 1:+.0%}",
            mib(round(each.peak_bytes)),
            mib(round(each.forecast_peak_bytes)),
            f"{each.peak_bytes / each.forecast_peak_bytes - 1:+.1%}",
        ]
        for each in points
    ]
    return columns([head, *rows], right=tuple(range(len(head))))


def _spread(samples: Sequence[float], written: Callable[[float], str]) -> str:
    """The mean over equal work, and the range; nothing for what was not used."""
    if not all(samples):
        return ""
    return f"{written(statistics.harmonic_mean(samples))} ({written(min(samples))} to {written(max(samples))})"
