"""A plan in words: the lines that are printed before anything is loaded."""

from residency.planner.paging import Paging
from residency.planner.plan import DevicePlan, Plan
from residency.planner.streaming import Streaming
from residency.units import binary_bytes, decimal_bytes, mib, operations_rate, rate

MEANINGLESS = "the weights are made up, for measuring: what the model writes has no meaning"


def explain(plan: Plan) -> str:
    """Three lines (model and budget; bytes by class; speed with its arithmetic), one more where weights stream and
    one where rates are assumed. Without a newline at the end."""
    memory = plan.memory
    sequences = f" · {plan.max_sequences} sequences" if plan.max_sequences > 1 else ""
    lines = [
        f"{plan.model_name} · {plan.architecture} · {plan.format_label} · context {plan.context_tokens}{sequences}"
        f" · {plan.device.name if plan.device else 'RAM'} budget {binary_bytes(plan.budget_bytes)}",
        f"weights {mib(memory.weights)} · KV cache {mib(memory.kv_cache)} · activations {mib(memory.activations)}"
        f" · runtime {mib(memory.runtime)} · free {mib(plan.free_bytes)}",
        f"forecast {speed(plan.forecast.decode_tokens_per_second)} tokens/s, {arithmetic(plan)}",
    ]
    if plan.paging is not None:
        lines.insert(2, slots(plan.paging))
    if plan.streaming is not None:
        lines.insert(2, placement(plan.streaming))
    if plan.device is not None:
        lines += beside_device(plan.device)
    if plan.is_made_up:
        lines.append(MEANINGLESS)
    if plan.forecast.assumed:
        lines.append(f"{len(plan.forecast.assumed)} of the forecast's figures are assumed, not yet measured here")
    return "plan   " + "\n       ".join(lines)


def speed(tokens_per_second: float) -> str:
    """Tokens a second in three digits: "310", "26.4", "0.52"."""
    decimals = 0 if tokens_per_second >= 99.95 else 1 if tokens_per_second >= 9.995 else 2
    return f"{tokens_per_second:.{decimals}f}"


def placement(streaming: Streaming) -> str:
    """What stays and what streams."""
    return (
        f"of the weights {mib(streaming.resident_bytes)} stay, {mib(streaming.streamed_bytes)} stream from the disk "
        f"each step, through {streaming.slots} buffers of {mib(streaming.slot_bytes)}"
    )


def slots(paging: Paging) -> str:
    """Where experts are."""
    return (
        f"{paging.slots} of {paging.num_experts} experts are in memory, {mib(paging.slot_bytes)} each; the others are "
        f"read from the disk when a token is sent to them, at {rate(paging.disk_bytes_per_second)}"
    )


def beside_device(planned: DevicePlan) -> list[str]:
    """Where the weights are that do not fit into a device's memory."""
    pinned = mib(planned.pinned_bytes)
    if planned.expert_slots:
        in_ram = planned.num_experts - planned.disk_experts if planned.disk_experts else "all"
        on_disk = " and all on the disk," if planned.disk_experts else ""
        return [
            f"{planned.expert_slots} of {planned.num_experts} experts are on the device, {in_ram} in pinned RAM, "
            f"{pinned},{on_disk} from which the others come when a token is sent to them"
        ]
    if not planned.streamed_layers:
        return []
    on_disk = f"; {planned.disk_layers} of them lie on the disk and pass through it" if planned.disk_layers else ""
    return [f"the last {planned.streamed_layers} layers arrive in each step from pinned RAM, {pinned}{on_disk}"]


def arithmetic(plan: Plan) -> str:
    """What bounds decoding, and what is divided by what."""
    forecast, streaming, paging = plan.forecast, plan.streaming, plan.paging
    if paging is not None and streaming is not None and forecast.bound == "disk":
        read_bytes = streaming.streamed_bytes + round((1 - paging.hit_rate) * paging.token_bytes)
        figures = f"{decimal_bytes(read_bytes)} a token at {rate(paging.disk_bytes_per_second)}"
    elif paging is not None and forecast.bound == "disk":
        missing_bytes = round((1 - paging.hit_rate) * paging.token_bytes)
        figures = f"{decimal_bytes(missing_bytes)} of experts a token at {rate(paging.disk_bytes_per_second)}"
    elif streaming is not None and forecast.bound == "disk":
        figures = f"{decimal_bytes(streaming.streamed_bytes)} a step at {rate(streaming.disk_bytes_per_second)}"
    elif forecast.bound == "memory":
        figures = f"{decimal_bytes(forecast.read_bytes_per_token)} a token at {rate(forecast.read_bytes_per_second)}"
    else:
        operations = operations_rate(forecast.operations_per_token).removesuffix("/s")
        figures = f"{operations} a token at {operations_rate(forecast.operations_per_second)}"
    return f"{forecast.bound}-bound: {figures}"
