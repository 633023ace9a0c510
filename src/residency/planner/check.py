"""Whether a plan, which may come from a file, is one that its model can be run by."""

from dataclasses import replace

from residency.errors import FileError
from residency.planner.buffers import activation_buffers
from residency.planner.memory import kv_groups
from residency.planner.on_device import fits_device_plan
from residency.planner.paging import Paging, least_paging, with_slots
from residency.planner.plan import Plan
from residency.planner.streaming import LEAST_SLOTS, Streaming, least_streaming
from residency.spec.layout import store_layout
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS


def check_plan(plan: Plan, model: ModelSpec) -> None:
    """FileError where the plan's arrays are not those that `model` needs: native code writes to them."""
    if plan.device is not None:
        if not fits_device_plan(plan, plan.device, model):
            raise _refusal(plan)
        return
    if plan.kv_format == "BF16" or plan.kv_format == "FP8":
        raise _refusal(plan)
    logit_rows = next((buffer.shape[0] for buffer in plan.buffers if buffer.name == "logits" and buffer.shape), 1)
    buffers = activation_buffers(
        model,
        chunk_tokens=plan.chunk_tokens,
        max_sequences=plan.max_sequences,
        max_context_tokens=plan.context_tokens,
        threads=plan.threads,
        logit_rows=logit_rows,
        kv=KV_FORMATS[plan.kv_format],
        prompts_in_tiles=plan.prompts_in_tiles,
    )
    least, most = (
        kv_groups(
            model,
            context_tokens=plan.context_tokens,
            chunk_tokens=plan.chunk_tokens,
            max_sequences=plan.max_sequences,
            kv_format=plan.kv_format,
            kv_tokens=kv_tokens,
        )
        for kv_tokens in (0, None)
    )
    num_pages = [group.num_pages for group in plan.kv_groups]
    groups = tuple(replace(group, num_pages=pages) for group, pages in zip(most, num_pages, strict=False))
    within = all(
        low.num_pages <= pages <= high.num_pages for low, pages, high in zip(least, num_pages, most, strict=False)
    )
    layout = store_layout(model)
    weights_bytes = layout.resident_bytes if plan.paging is None else layout.experts_offset
    if plan.streaming is not None:
        _check_streaming(plan, plan.streaming, model)
        weights_bytes = plan.streaming.memory_bytes
    if plan.paging is not None:
        _check_paging(plan, plan.paging, model)
        weights_bytes += plan.paging.memory_bytes
    needed = (buffers, groups, weights_bytes, model.architecture)
    planned = (plan.buffers, plan.kv_groups, plan.memory.weights, plan.architecture)
    usable = within and len(most) == len(num_pages) and plan.context_tokens <= model.max_context_tokens
    if needed != planned or not usable or not plan.forecast.read_bytes_per_second:
        raise _refusal(plan)


def _check_streaming(plan: Plan, streaming: Streaming, model: ModelSpec) -> None:
    least = least_streaming(model, streaming.disk_bytes_per_second)
    cut = (streaming.span_bytes, streaming.slot_bytes) == (least.span_bytes, least.slot_bytes)
    in_order = streaming.streamed == tuple(sorted({*streaming.streamed} & {*least.streamed}))
    has_rate = streaming.disk_bytes_per_second > 0
    if not (cut and in_order and has_rate and streaming.streamed and streaming.slots >= LEAST_SLOTS):
        raise _refusal(plan)


def _check_paging(plan: Plan, paging: Paging, model: ModelSpec) -> None:
    least = least_paging(model, paging.disk_bytes_per_second)
    if least is None or paging.disk_bytes_per_second <= 0:
        raise _refusal(plan)
    if paging.slots < least.slots or paging != with_slots(least, paging.slots):
        raise _refusal(plan)


def _refusal(plan: Plan) -> FileError:
    return FileError(f"the plan does not fit its model {plan.model_name}; make it anew with --plan-out.")
