"""What fits into a CUDA device's memory: weights, KV cache, activations, and what the context and graphs take."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from residency.errors import BudgetError, ContextError, UsageError
from residency.hardware import Device
from residency.planner.cost import ModelCost, Step
from residency.planner.device_needs import DeviceNeeds, DeviceRequest, decode_batches
from residency.planner.device_speed import LinkedDevice, Ways, device_seconds, elsewhere, workload
from residency.planner.plan import (
    DTYPE_BYTES,
    PAGE_TOKENS,
    DevicePlan,
    Plan,
    SpeedForecast,
)
from residency.spec.device_layout import DISK_BUFFERS, SLOTS, WINDOW_LAYERS, DeviceLayout, device_layout
from residency.spec.model import ModelSpec
from residency.spec.state import kv_format_named
from residency.units import binary_bytes, enough_mib

DEFAULT_CONTEXT_TOKENS = 2048
DEFAULT_CHUNK_TOKENS = 2048  # enough rows for the library's products to be bound by arithmetic
DEVICE_KV_FORMATS = ("BF16", "F16", "F32", "FP8", "INT8")
# What PyTorch takes beside the plan's arrays, as part of the runtime: it rounds each to 2 MiB, puts pages together on
# their way to RAM, and gives the library a workspace for the stream on which graphs are recorded.
ALLOCATOR_BYTES = 96 << 20
GRAPH_BYTES = 8 << 20  # of one recorded step: some hundred kernels' nodes and the driver's copies of their words
ASSUMED_WAYS = Ways(copied=5e10, gathered=4e10, disk=0.0)  # of PCIe 5.0
_FORECAST_CONTEXT_TOKENS = 129  # the token itself and those before it


def plan_on_device(
    model: ModelSpec,
    asked: DeviceRequest,
    *,
    device: Device,
    multiprocessors: int,
    runtime_bytes: int,
    ram_bytes: int = 0,
    ways: Ways = ASSUMED_WAYS,
    model_path: Path,
    fingerprint: str,
) -> Plan:
    """The plan of a run of `model` in the memory of `device`, each sequence with room for the whole context, unless
    they may share what room there is.

    What does not fit stays in RAM, at most `ram_bytes`: experts, which are brought when a token is sent to them, or
    else layers, which arrive in every step. What RAM has no room for either stays on the disk, if there is one.

    runtime_bytes: of the context, the library's workspace, kernels and graphs. The budget is by default all that the
    device has. BudgetError says what is missing and the cheapest change; ContextError and UsageError as plan_run.
    """
    _check(model, asked)
    budget = device.usable_bytes if asked.budget_bytes is None else asked.budget_bytes
    if budget > device.usable_bytes:
        raise BudgetError(
            f"a budget of {binary_bytes(budget)} is {binary_bytes(budget - device.usable_bytes)} more than the memory "
            f"of {device.name}; give --memory {device.usable_bytes // 1024**2}MiB or less."
        )
    context = asked.context_tokens or min(model.max_context_tokens, DEFAULT_CONTEXT_TOKENS)
    chunk = max(min(asked.chunk_tokens or DEFAULT_CHUNK_TOKENS, context), asked.max_sequences)
    needs = DeviceNeeds(model=model, asked=asked, multiprocessors=multiprocessors, runtime_bytes=runtime_bytes)
    if asked.oversubscribe:
        needs = _sharing(needs, budget, context, chunk)
    if needs.memory(context, chunk).peak > budget:
        has_disk = ways.disk > 0
        paged = _paging(needs, budget, context, chunk, ram_bytes, has_disk=has_disk)
        needs = paged or _streaming(needs, budget, context, chunk, ram_bytes, has_disk=has_disk) or needs
    memory = needs.memory(context, chunk)
    if memory.peak > budget:
        raise _refusal(needs, device, budget, context, chunk)
    planned = needs.device_plan(device.name, device.usable_bytes)
    return Plan(
        model_path=model_path,
        model_fingerprint=fingerprint,
        model_name=model.name,
        architecture=model.architecture,
        format_label=model.format_label if asked.random_weights in (None, "source") else asked.random_weights,
        budget_bytes=budget,
        context_tokens=context,
        max_sequences=asked.max_sequences,
        chunk_tokens=chunk,
        page_tokens=PAGE_TOKENS,
        threads=1,
        buffers=needs.buffers(context, chunk),
        kv_format=asked.kv_format,
        kv_groups=needs.kv_groups(context, chunk),
        memory=memory,
        forecast=_forecast(
            model,
            ModelCost.on_device(model, activation_type=asked.activation_type, kv=kv_format_named(asked.kv_format)),
            LinkedDevice(device=device, ways=ways),
            planned,
            context_tokens=context,
        ),
        device=planned,
    )


def fits_device_plan(plan: Plan, planned: DevicePlan, model: ModelSpec) -> bool:
    """Whether the plan's arrays are those that `model` needs on its device."""
    asked = DeviceRequest(
        context_tokens=plan.context_tokens,
        max_sequences=plan.max_sequences,
        logit_rows=next((each.shape[0] for each in plan.buffers if each.name == "logits" and each.shape), 1),
        kv_format=plan.kv_format,
        activation_type=planned.activation_type,
        random_weights=planned.random_weights,
    )
    needs = DeviceNeeds(
        model=model,
        asked=asked,
        multiprocessors=planned.multiprocessors,
        runtime_bytes=plan.memory.runtime,
        num_streamed=min(planned.streamed_layers, len(model.layers)),
        num_disk=min(planned.disk_layers, planned.streamed_layers, len(model.layers)),
        expert_slots=planned.expert_slots,
        disk_experts=planned.disk_experts,
    )
    every = needs.kv_groups(plan.context_tokens, plan.chunk_tokens)
    if every and plan.kv_groups and every[0].num_pages >= plan.kv_groups[0].num_pages > 0:
        pages = every[0].num_pages // plan.max_sequences
        needs = replace(needs, whole_sequences=max(1, plan.kv_groups[0].num_pages // pages))
    if not _has_room(needs) or planned != needs.device_plan(planned.name, planned.memory_bytes):
        return False
    extents = plan.context_tokens, plan.chunk_tokens
    needed = (needs.buffers(*extents), needs.kv_groups(*extents), needs.memory(*extents), model.architecture)
    usable = plan.max_sequences <= plan.chunk_tokens and plan.context_tokens <= model.max_context_tokens
    return usable and needed == (plan.buffers, plan.kv_groups, plan.memory, plan.architecture)


def planned_layout(planned: DevicePlan, model: ModelSpec) -> DeviceLayout:
    """Where a plan's model lies."""
    return device_layout(
        model,
        planned.activation_type,
        num_streamed=planned.streamed_layers,
        num_disk=planned.disk_layers,
        expert_slots=planned.expert_slots,
        disk_experts=planned.disk_experts,
    )


def runtime_beside(driver_bytes: int, max_sequences: int) -> int:
    """What a run takes beside its arrays: the driver and libraries, the graphs, and the allocator's own."""
    return driver_bytes + len(decode_batches(max_sequences)) * GRAPH_BYTES + ALLOCATOR_BYTES


def _sharing(needs: DeviceNeeds, budget: int, context: int, chunk: int) -> DeviceNeeds:
    """The same with pages for the whole contexts of as many sequences as fit, one at least."""
    for whole in range(needs.asked.max_sequences, 1, -1):
        fewer = replace(needs, whole_sequences=whole)
        if fewer.memory(context, chunk).peak <= budget:
            return fewer
    return replace(needs, whole_sequences=1)


def _streaming(
    needs: DeviceNeeds, budget: int, context: int, chunk: int, ram_bytes: int, *, has_disk: bool
) -> DeviceNeeds | None:
    """The same with as few layers in RAM as fit, and as few of these on disk; None where no number does."""
    for num_streamed in range(SLOTS + 1, len(needs.model.layers) + 1):
        fewer = replace(needs, num_streamed=num_streamed)
        if fewer.memory(context, chunk).peak > budget:
            continue
        if fewer.layout.host_bytes <= ram_bytes:
            return fewer
        most_held = ram_bytes // fewer.layout.layer_bytes - DISK_BUFFERS
        return replace(fewer, num_disk=num_streamed - most_held) if has_disk and most_held >= 0 else None
    return None


def _paging(
    needs: DeviceNeeds, budget: int, context: int, chunk: int, ram_bytes: int, *, has_disk: bool
) -> DeviceNeeds | None:
    """The same with slots for as many experts as fit, and homes in RAM for all, or with a disk as many as fit; None
    where not even a step's do.
    """
    least = least_slots(needs.model)
    if least is None:
        return None
    fewest = replace(needs, expert_slots=least)
    experts, free_bytes = fewest.layout.experts, budget - fewest.memory(context, chunk).peak
    if experts is None or free_bytes < 0:
        return None
    slot_bytes = experts.slot_bytes + DTYPE_BYTES["int32"]  # for who is in it
    slots = min(experts.num_experts, least + free_bytes // slot_bytes)
    disk_experts = max(0, experts.homes - ram_bytes // experts.slot_bytes)
    paged = replace(needs, expert_slots=slots, disk_experts=disk_experts)
    return paged if _has_room(paged) and (has_disk or not disk_experts) else None


def least_slots(model: ModelSpec) -> int | None:
    """Slots with which every step ends: for all experts of a layer, and of the one that is guessed meanwhile. None for
    a model that has not so many experts.
    """
    copies = [layer.experts[0].copies for layer in model.layers if layer.experts]
    least = WINDOW_LAYERS * max(copies, default=0)
    return least if 0 < least < sum(copies) else None


def _has_room(needs: DeviceNeeds) -> bool:
    """Whether experts that are brought one by one have slots and homes with which every step ends."""
    if needs.expert_slots == 0:
        return needs.disk_experts == 0
    least, experts = least_slots(needs.model), needs.layout.experts
    if least is None or experts is None or needs.expert_slots < least:
        return False
    return needs.disk_experts >= 0 and experts.homes >= experts.per_layer


def _check(model: ModelSpec, asked: DeviceRequest) -> None:
    numbers = {
        "context": asked.context_tokens,
        "sequences": asked.max_sequences,
        "chunk": asked.chunk_tokens,
        "logit rows": asked.logit_rows,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} cannot be {number}; give at least 1.")
    if asked.kv_format not in DEVICE_KV_FORMATS:
        raise UsageError(f"a CUDA device keeps keys and values as one of {', '.join(DEVICE_KV_FORMATS)}.")
    if asked.context_tokens is not None and asked.context_tokens > model.max_context_tokens:
        raise ContextError(
            f"a context of {asked.context_tokens} tokens is {asked.context_tokens - model.max_context_tokens} more "
            f"than {model.name} has; ask for --context {model.max_context_tokens} or less."
        )


def _refusal(needs: DeviceNeeds, device: Device, budget: int, context: int, chunk: int) -> BudgetError:
    memory = needs.memory(context, chunk)
    smaller = [
        f"--{name} {value.lower() if name == 'kv' else value}"
        for name, value, other, tokens in _changes(needs, context)
        if other.memory(tokens, min(chunk, max(tokens, needs.asked.max_sequences))).peak <= budget
    ]
    enough = f"--memory {enough_mib(memory.peak)}"
    changes = smaller[:1] + ([enough] if memory.peak <= device.usable_bytes else [])
    change = f"The cheapest change: {', or '.join(changes)}." if changes else "Take a smaller model or a larger device."
    return BudgetError(
        f"{needs.model.name} needs {binary_bytes(memory.peak)} on {device.name} with a context of {context} (weights "
        f"{binary_bytes(memory.weights)}, KV cache {binary_bytes(memory.kv_cache)}, activations "
        f"{binary_bytes(memory.activations)}, runtime {binary_bytes(memory.runtime)}); the budget is "
        f"{binary_bytes(budget)}, {binary_bytes(memory.peak - budget)} too little. {change}"
    )


def _changes(needs: DeviceNeeds, context: int) -> Sequence[tuple[str, str, DeviceNeeds, int]]:
    """What may be given up, cheapest first."""
    kv = replace(needs, asked=replace(needs.asked, kv_format="INT8"))
    shorter = [context // part for part in (2, 4, 8, 16) if context // part >= PAGE_TOKENS]
    return [("kv", "INT8", kv, context), *(("context", str(tokens), needs, tokens) for tokens in shorter)]


def _forecast(
    model: ModelSpec,
    cost: ModelCost,
    linked: LinkedDevice,
    planned: DevicePlan,
    *,
    context_tokens: int,
) -> SpeedForecast:
    """Decoding after 128 tokens, and prompts at the rate of large products."""
    device = linked.device
    work = workload(cost, Step(sequences=1, context_tokens=_FORECAST_CONTEXT_TOKENS))
    time = device_seconds(work, linked, num_layers=cost.num_layers, needed=elsewhere(planned, cost, 1))
    operations = 2 * model.active_parameters
    operations_rate = device.dense_operations_per_second("bf16") * device.figure("matrix_efficiency")
    prefill_rate = operations_rate / operations
    return SpeedForecast(
        decode_tokens_per_second=1 / time.total,
        prefill_tokens_per_second=prefill_rate,
        time_to_first_token_seconds=max(1, context_tokens // 2) / prefill_rate + time.overhead,
        bound="memory",
        read_bytes_per_token=work.read_bytes,
        read_bytes_per_second=device.memory_bytes_per_second * device.figure("read_efficiency"),
        operations_per_token=operations,
        operations_per_second=operations_rate,
        step_overhead_seconds=time.overhead,
        assumed=tuple(sorted(name for name, figure in device.figures.items() if figure.origin == "assumed")),
    )
