"""Decoding with routes that a file gives: how often experts are in memory and how fast that is, beside the forecast."""

import random
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from residency.engine.engine import Progress
from residency.errors import FileError, UsageError
from residency.hardware import Machine
from residency.ledger.experts import Hindsight, LeastFrequent, LeastRecent, Trace, hit_rate
from residency.planner.cost import ModelCost, step_seconds, step_workload
from residency.planner.paging import READERS
from residency.planner.plan import Plan
from residency.planner.streaming import streamed_seconds
from residency.spec.model import ModelSpec, MoeSpec
from residency.store.disk_rate import file_read_rate
from residency.store.paging import PagingCounts, expert_ranges
from residency.store.weights import store_folder
from residency.verifier.opened import opened

_MOST_TRACE_BYTES = 1 << 28
_WARM_UP_PART = 4  # of the trace, a quarter fills the slots and is not counted
_STRETCH_SECONDS = 2.0  # of decoding, with bare reads of the disk before and after
_READING_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class HitRates:
    """Of the experts that are needed after the warm-up, the share in memory: by simulation, of each way to choose."""

    frequent: float  # what residency does
    recent: float
    hindsight: float  # the most that any could reach


@dataclass(frozen=True, kw_only=True)
class TraceSpeed:
    """One sequence decoded along a trace."""

    steps: int  # that were counted
    slots: int
    num_experts: int
    forecast: HitRates
    hit_rate: float
    tokens_per_second: float
    forecast_tokens_per_second: float
    disk_bytes_per_second: float  # of bare reads of experts beside the run, which the forecast goes by
    read_bytes_per_step: float  # from the disk
    read_bytes_per_second: float  # by the time that steps took beyond what computing takes by the forecast
    streaming_tokens_per_second: float  # if every step read all experts at that rate

    def to_data(self) -> dict[str, object]:
        """As JSON values."""
        return {**vars(self), "forecast": vars(self.forecast)}


def read_trace(path: Path, model: ModelSpec) -> Trace:
    """The experts (steps, mixture layers, experts of a token) in a NumPy file. FileError if it is not such a file,
    UsageError if it is not for `model`.
    """
    specs = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoeSpec)]
    if not specs:
        raise UsageError(f"{model.name} has no experts; leave --expert-trace out.")
    try:
        if path.stat().st_size > _MOST_TRACE_BYTES:
            raise FileError(f"the trace {path} is larger than {_MOST_TRACE_BYTES >> 20} MiB; give a shorter one.")
        trace: Trace = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"the trace {path} could not be read: {error}; write it with numpy.save.") from error
    wanted = (len(specs), specs[0].experts_per_token)
    if trace.ndim != 3 or trace.shape[1:] != wanted or not np.issubdtype(trace.dtype, np.integer) or len(trace) < 8:
        raise UsageError(
            f"the trace {path} holds {trace.dtype} of shape {trace.shape}; {model.name} needs 8 steps or more "
            f"of whole numbers of shape {wanted}: mixture layers, experts of a token."
        )
    if trace.min() < 0 or trace.max() >= min(spec.num_experts for spec in specs):
        raise UsageError(f"the trace {path} names an expert that {model.name} does not have.")
    return trace


def trace_speed(plan: Plan, model: ModelSpec, machine: Machine, trace: Trace, progress: Progress | None) -> TraceSpeed:
    """Decode one sequence along `trace`. UsageError if all experts fit, or the plan's context is shorter."""
    if plan.paging is None:
        raise UsageError("all experts fit into memory; give a smaller --memory.")
    if len(trace) + 2 > plan.context_tokens:
        raise UsageError(f"the trace has {len(trace)} steps and the context {plan.context_tokens}; give a shorter one.")
    warm_up = len(trace) // _WARM_UP_PART
    measured = _decoded(plan, model, trace, warm_up, progress)
    rates = _rates(trace, max(layer.experts[0].copies for layer in model.layers if layer.experts), plan, warm_up)
    resident = step_seconds(
        step_workload(measured.cost, start_token=len(trace) // 2, num_tokens=1),
        cost=measured.cost,
        machine=machine,
        threads=plan.threads,
    )
    computing_seconds = streamed_seconds(resident.total, plan.streaming)
    needed_bytes = plan.paging.slot_bytes * measured.counts.needed / measured.steps
    paging = replace(plan.paging, hit_rate=rates.frequent, disk_bytes_per_second=measured.disk_bytes_per_second)
    forecast_seconds = computing_seconds + paging.missing_seconds(needed_bytes)
    read_bytes = measured.counts.read_bytes / measured.steps
    read_rate = read_bytes / max(measured.step_seconds - computing_seconds, 0.01 * measured.step_seconds)
    all_seconds = plan.paging.slot_bytes * plan.paging.num_experts / read_rate if read_rate else 0.0
    return TraceSpeed(
        steps=measured.steps,
        slots=plan.paging.slots,
        num_experts=plan.paging.num_experts,
        forecast=rates,
        hit_rate=measured.counts.hit_rate,
        tokens_per_second=1 / measured.step_seconds,
        forecast_tokens_per_second=1 / forecast_seconds,
        disk_bytes_per_second=measured.disk_bytes_per_second,
        read_bytes_per_step=read_bytes,
        read_bytes_per_second=read_rate,
        streaming_tokens_per_second=1 / (computing_seconds + all_seconds),
    )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    steps: int
    step_seconds: float
    disk_bytes_per_second: float
    counts: PagingCounts
    cost: ModelCost


def _decoded(plan: Plan, model: ModelSpec, trace: Trace, warm_up: int, progress: Progress | None) -> _Measured:
    """The steps after the warm-up, and how fast the disk was before, between and after stretches of them."""
    routes = np.zeros((len(model.layers), plan.chunk_tokens, trace.shape[2]), np.int32)
    mixtures = [index for index, layer in enumerate(model.layers) if layer.experts]
    steps = len(trace) - warm_up
    with opened(plan, progress, routes=routes) as running:
        assert running.weights is not None
        pager = running.weights.pager
        assert pager is not None

        def decode(number: int) -> float:
            routes[mixtures] = trace[number][:, None, :]
            started = time.perf_counter()
            running.loop.step()
            seconds = time.perf_counter() - started
            if progress is not None:
                progress("decoding", number + 1, len(trace))
            return seconds

        running.submit(1, len(trace))
        for number in range(warm_up):
            decode(number)
        before, seconds, stretch_seconds = pager.counts, 0.0, 0.0
        rates = [_disk_rate(plan, model)]
        for number in range(warm_up, len(trace)):
            stretch_seconds += decode(number)
            if stretch_seconds > _STRETCH_SECONDS or number + 1 == len(trace):
                seconds, stretch_seconds = seconds + stretch_seconds, 0.0
                rates.append(_disk_rate(plan, model))
        return _Measured(
            steps=steps,
            step_seconds=seconds / steps,
            disk_bytes_per_second=statistics.harmonic_mean(rates),
            counts=pager.counts.since(before),
            cost=running.cost,
        )


def _disk_rate(plan: Plan, model: ModelSpec) -> float:
    """How fast the disk gives experts just now, in any order."""
    experts = list(expert_ranges(model).values())
    random.shuffle(experts)
    path = store_folder(plan.model_fingerprint) / "weights"
    room_bytes = max(each.num_bytes for each in experts)
    return file_read_rate(path, experts, room_bytes=room_bytes, threads=READERS, seconds=_READING_SECONDS)


def _rates(trace: Trace, experts: int, plan: Plan, warm_up: int) -> HitRates:
    assert plan.paging is not None
    slots, num_experts = plan.paging.slots, trace.shape[1] * experts
    policies = (LeastFrequent(num_experts), LeastRecent(num_experts), Hindsight(trace, experts))
    frequent, recent, hindsight = (
        hit_rate(trace, experts, slots, policy, warm_up_steps=warm_up) for policy in policies
    )
    return HitRates(frequent=frequent, recent=recent, hindsight=hindsight)
