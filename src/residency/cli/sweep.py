"""`residency bench --sweep-memory`: speed and peak by the part of the weights that stays, in a process for each."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from residency.cli.options import PlanOptions
from residency.cli.prepare import prepare_first
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.engine.planning import plan_rows
from residency.errors import ResidencyError, UsageError
from residency.hardware import Machine, ThreadRate
from residency.models.specs import model_spec
from residency.paths import child_environment
from residency.planner.explain import speed
from residency.planner.streaming import READERS, least_streaming
from residency.spec.opening import open_checkpoint
from residency.store.disk_rate import file_read_rate
from residency.store.weights import store_folder
from residency.units import mib
from residency.verifier.sweep import Sweep, SweepPoint

RESIDENT_PARTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CONTEXT_TOKENS = 512  # of each run, half of it a prompt
ANSWER_TOKENS = (16, 192)  # of each run, at least and at most
ANSWER_SECONDS = 4.0
RATE_SECONDS = 0.5
_TOLERANT = "--memory-tolerance=1e6 --peak-tolerance=1e6 --speed-tolerance=1e6".split()  # all is shown, nothing judged


def sweep_memory(
    path: Path, machine: Machine, *, threads: int | None, progress: Progress
) -> tuple[Sweep, list[SweepPoint]]:
    """Run the model in budgets from the least to enough. MachineError without a disk, UsageError
    for a mixture; errors of the runs as theirs.

    What is forecast goes by the rate at which the disk reads these very weights just before: disks that others share
    change by the minute, and what is read again and again may lie in a cache behind the disk.
    """
    plan_options = PlanOptions(context_tokens=CONTEXT_TOKENS, threads=threads)
    whole = plan_rows(path, context=CONTEXT_TOKENS, threads=threads, machine=machine)
    model = model_spec(open_checkpoint(path))
    if any(layer.experts for layer in model.layers):
        raise UsageError(f"{model.name} is a mixture of experts, whose speed follows its routes; use --expert-trace.")
    prepare_first(str(path), plan_options)
    weights_file = store_folder(whole.model_fingerprint) / "weights"
    rates: list[float] = []
    sweep = Sweep.of(whole, model, machine.tier("disk").read_bytes_per_second(READERS))
    points: list[SweepPoint] = []
    for done, part in enumerate(RESIDENT_PARTS):
        progress("running in ever more memory", done, len(RESIDENT_PARTS))
        budget_bytes = sweep.budget_bytes(part)
        if part < 1.0:  # the last reads nothing from the disk
            rates.append(_disk_rate(weights_file))
        now = _with_disk_rate(machine, rates[-1])
        plan = plan_rows(path, memory=budget_bytes, context=CONTEXT_TOKENS, threads=threads, machine=now)
        expected = plan.forecast.decode_tokens_per_second
        verified = _verify(path, budget_bytes, _answer_tokens(expected), threads)
        decode, peak = verified["decode"], verified["peak"]
        points.append(
            SweepPoint(
                budget_bytes=budget_bytes,
                resident_part=sweep.resident_part(plan),
                forecast_tokens_per_second=expected,
                tokens_per_second=decode["measured"],
                forecast_peak_bytes=peak["forecast"],
                peak_bytes=peak["measured"],
            )
        )
    progress("running in ever more memory", len(RESIDENT_PARTS), len(RESIDENT_PARTS))
    return replace(sweep, least=least_streaming(model, statistics.median(rates))), points


def sweep_lines(points: Sequence[SweepPoint]) -> list[str]:
    """The table for people."""
    head = ["memory", "weights that stay", "tokens/s", "forecast", "", "peak", "forecast", ""]
    rows = [
        [
            mib(each.budget_bytes),
            f"{each.resident_part:.0%}",
            speed(each.tokens_per_second),
            speed(each.forecast_tokens_per_second),
            f"{each.tokens_per_second / each.forecast_tokens_per_second - 1:+.0%}",
            mib(round(each.peak_bytes)),
            mib(round(each.forecast_peak_bytes)),
            f"{each.peak_bytes / each.forecast_peak_bytes - 1:+.1%}",
        ]
        for each in points
    ]
    return columns([head, *rows], right=tuple(range(len(head))))


def _disk_rate(weights_file: Path) -> float:
    try:
        return file_read_rate(weights_file, threads=READERS, limit_seconds=RATE_SECONDS)
    except OSError as error:
        raise ResidencyError(f"{weights_file} cannot be read: {error.strerror}.") from None


def _with_disk_rate(machine: Machine, bytes_per_second: float) -> Machine:
    rates = (ThreadRate(threads=READERS, bytes_per_second=bytes_per_second),)
    return replace(
        machine,
        tiers=tuple(replace(tier, read_rates=rates) if tier.kind == "disk" else tier for tier in machine.tiers),
    )


def _answer_tokens(tokens_per_second: float) -> int:
    fewest, most = ANSWER_TOKENS
    return min(max(int(tokens_per_second * ANSWER_SECONDS), fewest), most)


def _verify(path: Path, budget_bytes: int, answer_tokens: int, threads: int | None) -> dict[str, dict[str, float]]:
    words = [f"--memory={budget_bytes}B", f"--context={CONTEXT_TOKENS}", f"--answer-tokens={answer_tokens}", *_TOLERANT]
    if threads is not None:
        words.append(f"--threads={threads}")
    done = subprocess.run(
        [sys.executable, "-m", "residency", "verify", *words, "--json", "--", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    if done.returncode:
        raise ResidencyError(done.stderr.strip().removeprefix("residency: ") or "a run of the sweep was killed.")
    return {each["name"]: each for each in json.loads(done.stdout)["comparisons"]}
