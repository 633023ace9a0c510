"""A run on this machine, told in the shape of every other answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from residency.cli.deploying import Asked
from residency.cli.options import DeviceName, PlanOptions
from residency.cli.planned import planned
from residency.cli.progress import Progress
from residency.errors import UsageError
from residency.models.specs import FOLDERS, is_known, model_spec
from residency.planner import Plan
from residency.planner.answers import (
    AnswerRecord,
    DeviceFigures,
    ForecastFigures,
    Origin,
    PhaseFigures,
    PlacementFigures,
)
from residency.planner.explain import arithmetic, beside_device, placement, slots
from residency.planner.plan import PLAN_VERSION, TOLD_BESIDE
from residency.planner.recording import model_figures
from residency.records import to_data
from residency.spec.opening import open_checkpoint
from residency.spec.state import KV_FORMATS, RUN_KV_NAMES, kv_format_named
from residency.store.fetch import CATALOG, find
from residency.units import binary_bytes

_OF_A_RUN = ("memory", "context", "kv")  # options that a run here has as well


def is_local(model: str, on: str | None, asked: Asked) -> bool:
    """Whether the question is for a run of residency's own engine on this machine.

    Without `on`, a model whose files are here, or can be fetched, is to be run, and refused where it cannot.
    """
    if on not in (None, "this") or not set(asked.given()) <= set(_OF_A_RUN):
        return False
    if asked.kv is not None and kv_format_named(asked.kv).name not in RUN_KV_NAMES:
        return False
    if model not in CATALOG and is_known(model) and not Path(model).exists():
        return False
    path = find(model)
    if path is None:
        return True
    if path.is_dir() and not any(path.glob("*.safetensors")):
        return False
    return on is None or open_checkpoint(path).architecture in FOLDERS


def local_plan(model: str, asked: Asked, threads: int | None, device: DeviceName | None, progress: Progress) -> Plan:
    """The plan of a run here, or the one that a file holds. UsageError for options that a run does not have."""
    others = [name for name in asked.given() if name not in _OF_A_RUN]
    if others:
        raise UsageError(f"--{others[0]} is of a deployment; name its machine with --on, or leave it away.")
    kv = None if asked.kv is None else kv_format_named(asked.kv).name
    options = PlanOptions(
        memory_bytes=asked.memory,
        context_tokens=asked.context,
        threads=threads,
        kv_format=kv,  # type: ignore[arg-type]
        device=device,
    )
    return planned(model, options, progress)


def local_answer(plan: Plan) -> AnswerRecord:
    """The plan as an answer, for a page and for those who read every answer in one way."""
    spec = model_spec(open_checkpoint(plan.model_path))
    return AnswerRecord(
        model=model_figures(spec, KV_FORMATS[plan.kv_format]),
        machine="this",
        status="shipped",
        engine="residency",
        goal=None,
        fits=True,
        missing_bytes=0,
        placement=_placement(plan),
        devices=(_device(plan),),
        forecast=_forecast(plan),
        training=None,
        bottleneck=f"decoding is {arithmetic(plan)}",
        reasons=(_where(plan),),
        nearest=None,
        changes=(),
        weighed=1,
        optimal=True,
        origins=_origins(plan),
    )


def local_data(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values, with what every answer tells beside it."""
    told = to_data(local_answer(plan))
    return {"plan_version": PLAN_VERSION, **to_data(plan), **{name: told[name] for name in TOLD_BESIDE}}


def _where(plan: Plan) -> str:
    where = [] if plan.streaming is None else [placement(plan.streaming)]
    where += [] if plan.paging is None else [slots(plan.paging)]
    where += [] if plan.device is None else beside_device(plan.device)
    if where:
        return "; ".join(where)
    tier = "RAM" if plan.device is None else f"the memory of {plan.device.name}"
    return f"all that a token needs is in {tier}: {binary_bytes(plan.memory.peak)} of {binary_bytes(plan.budget_bytes)}"


def _placement(plan: Plan) -> PlacementFigures:
    return PlacementFigures(
        kv_format=plan.kv_format,
        context_tokens=plan.context_tokens,
        prompt_tokens=max(1, plan.context_tokens // 2),
        concurrency=plan.max_sequences,
        chunk_tokens=plan.chunk_tokens,
        disk_bytes=0 if plan.streaming is None else plan.streaming.streamed_bytes,
    )


def _device(plan: Plan) -> DeviceFigures:
    memory = plan.memory
    return DeviceFigures(
        name=plan.device.name if plan.device else "RAM",
        budget_bytes=plan.budget_bytes,
        weights=memory.weights,
        kv_cache=memory.kv_cache,
        activations=memory.activations,
        runtime=memory.runtime,
        free=plan.free_bytes,
        usable_bytes=plan.budget_bytes,
        pool_tokens=plan.max_sequences * plan.context_tokens,
        max_concurrency=float(plan.max_sequences),
    )


def _forecast(plan: Plan) -> ForecastFigures:
    told = plan.forecast
    decode = PhaseFigures(
        read_bytes=told.read_bytes_per_token,
        operations=told.operations_per_token,
        read_seconds=told.read_bytes_per_token / told.read_bytes_per_second,
        compute_seconds=told.operations_per_token / told.operations_per_second,
        overhead_seconds=told.step_overhead_seconds,
        exchange_seconds=0.0,
        transfer_seconds=0.0 if plan.streaming is None else plan.streaming.disk_seconds,
        seconds=1 / told.decode_tokens_per_second,
        bound=told.bound,
    )
    chunk_operations = told.operations_per_token * plan.chunk_tokens
    prefill = replace(
        decode,
        operations=chunk_operations,
        compute_seconds=chunk_operations / told.operations_per_second,
        seconds=plan.chunk_tokens / told.prefill_tokens_per_second,
        bound="compute" if chunk_operations / told.operations_per_second > decode.read_seconds else "memory",
    )
    return ForecastFigures(
        decode_tokens_per_second=told.decode_tokens_per_second,
        decode_tokens_per_second_alone=told.decode_tokens_per_second,
        decode_tokens_per_second_per_sequence=told.decode_tokens_per_second,
        prefill_tokens_per_second=told.prefill_tokens_per_second,
        time_to_first_token_seconds=told.time_to_first_token_seconds,
        time_to_first_token_seconds_at_concurrency=told.time_to_first_token_seconds,
        bound=told.bound,
        prefill_bound=prefill.bound,
        turning_batch=None,
        plain_roofline_tokens_per_second=told.read_bytes_per_second / told.read_bytes_per_token,
        decode=decode,
        decode_alone=decode,
        prefill=prefill,
    )


def _origins(plan: Plan) -> dict[str, Origin]:
    assumed = plan.forecast.assumed
    how = f"with {', '.join(assumed)} assumed" if assumed else "every rate measured here"
    return {
        "weights": Origin(origin="exact", how="every tensor as it lies in the store"),
        "kv_cache": Origin(origin="exact", how=f"pages of {plan.page_tokens} tokens for all sequences"),
        "activations": Origin(origin="exact", how="the buffers of the engine's own step"),
        "runtime": Origin(origin="measured", how="interpreter and compiled kernels, for this model here"),
        "forecast": Origin(origin="modelled", how=f"roofline of a whole step, {how}"),
    }
