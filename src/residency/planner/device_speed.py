"""How long a step takes on a device: reading its memory or multiplying, or the way from RAM where layers stream."""

from dataclasses import dataclass

from residency.hardware import Device
from residency.planner.cost import ModelCost, Step, StepSeconds, Workload, step_workload
from residency.planner.plan import Plan
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS


@dataclass(frozen=True, kw_only=True)
class LinkedDevice:
    """A device, and the rate at which what streams arrives from RAM."""

    device: Device
    link_bytes_per_second: float


def cost_of(plan: Plan, model: ModelSpec) -> ModelCost:
    """What a plan's steps are made of, on the processor or on a device."""
    kv = KV_FORMATS[plan.kv_format]
    if plan.device is None:
        return ModelCost.of(model, kv=kv)
    return ModelCost.on_device(model, activation_type=plan.device.activation_type, kv=kv)


def workload(cost: ModelCost, step: Step) -> Workload:
    """All operators of a step together."""
    works = cost.works(step)
    return Workload(
        read_bytes=round(sum(work.read_bytes for work in works)),
        matrix_operations=round(sum(work.matrix_operations for work in works)),
        attention_operations=round(sum(work.attention_operations for work in works)),
    )


def device_prefill_seconds(
    cost: ModelCost, linked: LinkedDevice, *, prompt_tokens: int, chunk_tokens: int, streamed_bytes: int = 0
) -> float:
    """From an empty cache to the logits after the prompt, chunk by chunk."""
    chunks = [
        step_workload(cost, start_token=start, num_tokens=min(chunk_tokens, prompt_tokens - start))
        for start in range(0, prompt_tokens, chunk_tokens)
    ]
    times = [device_seconds(work, linked, num_layers=cost.num_layers, streamed_bytes=streamed_bytes) for work in chunks]
    return sum(time.total for time in times)


def device_seconds(work: Workload, linked: LinkedDevice, *, num_layers: int, streamed_bytes: int = 0) -> StepSeconds:
    """A roofline with what steps lose between kernels (see assumed-device.toml); what streams arrives meanwhile."""
    device = linked.device
    read_rate = device.memory_bytes_per_second * device.figure("read_efficiency")
    operations_rate = device.dense_operations_per_second("bf16") * device.figure("matrix_efficiency")
    read = work.read_bytes / read_rate
    compute = (work.matrix_operations + work.attention_operations) / operations_rate
    overhead = device.figure("step_overhead_seconds") + num_layers * device.figure("layer_overhead_seconds")
    late = streamed_bytes / linked.link_bytes_per_second - max(read, compute) - overhead
    return StepSeconds(read=read, compute=compute, overhead=overhead, transfer=max(0.0, late))
