"""How long a step takes on a device: reading its memory or multiplying, or the way there for what is elsewhere."""

from dataclasses import dataclass, replace

from residency.hardware import Device
from residency.planner.cost import ModelCost, Step, StepSeconds, Workload, step_workload
from residency.planner.plan import DevicePlan, Plan
from residency.spec.device_layout import WINDOW_LAYERS
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS


@dataclass(frozen=True, kw_only=True)
class Ways:
    """Rates in bytes a second at which weights come to a device that are not in its memory."""

    copied: float  # from pinned RAM, by the device's copy engines
    gathered: float  # from pinned RAM, by kernels that read it themselves
    disk: float  # from the disk to pinned RAM; 0: there is none


@dataclass(frozen=True, kw_only=True)
class LinkedDevice:
    """A device, and the ways that lead to it."""

    device: Device
    ways: Ways


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What one step needs of the weights that are not on the device, in bytes."""

    copied: int = 0  # from pinned RAM, while others are computed
    disk: int = 0  # of these, what is read from the disk first, meanwhile as well
    gathered: float = 0.0  # experts, which nobody knows of before their layer
    fetched: float = 0.0  # of these, what the host reads from the disk first
    turns: int = 0  # of the host, between the kernels of a layer


def elsewhere(planned: DevicePlan, cost: ModelCost, tokens: int) -> Elsewhere:
    """What a step of so many tokens needs. Experts that are drawn evenly are on the device as often as there are slots
    for them; favourites are there more often, and some of the others come ahead of time. RAM has no home for those
    that stay on the device.
    """
    streamed = Elsewhere(
        copied=planned.streamed_layers * planned.layer_bytes, disk=planned.disk_layers * planned.layer_bytes
    )
    if not planned.expert_slots:
        return streamed
    routed_bytes, per_layer = cost.routed_bytes(tokens), max(each.num_experts for each in cost.matrices)
    gathered = (1 - planned.expert_slots / planned.num_experts) * routed_bytes
    if not planned.disk_experts:
        return replace(streamed, gathered=gathered)
    staying = planned.expert_slots - WINDOW_LAYERS * per_layer
    on_disk_alone = max(0, planned.disk_experts - staying) / planned.num_experts
    turns = planned.num_experts // per_layer
    return replace(streamed, gathered=gathered, fetched=on_disk_alone * routed_bytes, turns=turns)


def cost_of(plan: Plan, model: ModelSpec) -> ModelCost:
    """What a plan's steps are made of, on the processor or on a device."""
    kv = KV_FORMATS[plan.kv_format]
    if plan.device is None:
        return ModelCost.of(model, kv=kv)
    return ModelCost.on_device(model, activation_type=plan.device.activation_type, kv=kv)


def workload(cost: ModelCost, step: Step) -> Workload:
    """All operators of a step together."""
    return Workload.of(cost.works(step))


def device_prefill_seconds(
    planned: DevicePlan, cost: ModelCost, linked: LinkedDevice, *, prompt_tokens: int, chunk_tokens: int
) -> float:
    """From an empty cache to the logits after the prompt, chunk by chunk."""
    total = 0.0
    for start in range(0, prompt_tokens, chunk_tokens):
        num_tokens = min(chunk_tokens, prompt_tokens - start)
        work = step_workload(cost, start_token=start, num_tokens=num_tokens)
        needed = elsewhere(planned, cost, num_tokens)
        total += device_seconds(work, linked, num_layers=cost.num_layers, needed=needed).total
    return total


def device_seconds(work: Workload, linked: LinkedDevice, *, num_layers: int, needed: Elsewhere) -> StepSeconds:
    """A roofline with what steps lose between kernels (see assumed-device.toml). What streams arrives meanwhile, over
    the slower of the link and the disk; what is gathered is waited for. A layer that the host takes part in begins
    twice.
    """
    device, ways = linked.device, linked.ways
    read_rate = device.memory_bytes_per_second * device.figure("read_efficiency")
    operations_rate = device.dense_operations_per_second("bf16") * device.figure("matrix_efficiency")
    read = work.read_bytes / read_rate
    compute = (work.matrix_operations + work.attention_operations) / operations_rate
    layers = num_layers + needed.turns
    overhead = device.figure("step_overhead_seconds") + layers * device.figure("layer_overhead_seconds")
    arriving = max(needed.copied / ways.copied, needed.disk / ways.disk if needed.disk else 0.0)
    late = max(0.0, arriving - max(read, compute) - overhead)
    waited = needed.gathered / ways.gathered + (needed.fetched / ways.disk if needed.fetched else 0.0)
    return StepSeconds(read=read, compute=compute, overhead=overhead, transfer=late + waited)
