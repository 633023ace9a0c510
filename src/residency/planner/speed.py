"""How fast a run on this machine will be: the roofline of its steps, and of the disk where weights stream."""

from residency.hardware import Machine
from residency.planner.cost import (
    CACHE_RATE,
    PROMPT_ATTENTION_RATE,
    PROMPT_RATE,
    UNPACKING_RATE,
    ModelCost,
    step_seconds,
    step_workload,
)
from residency.planner.paging import Paging
from residency.planner.plan import SpeedForecast
from residency.planner.streaming import Streaming, streamed_seconds

DECODE_CONTEXT_TOKENS = 128  # what is read of the KV cache by the token that the forecast of decode is for
_USED_FIGURES = (
    "matrix_int8_operations_per_second",
    PROMPT_RATE,
    UNPACKING_RATE,
    PROMPT_ATTENTION_RATE,
    "vector_f32_operations_per_second",
    CACHE_RATE,
    "read_efficiency",
    "step_overhead_seconds",
    "layer_overhead_seconds",
)


def prefill_seconds(
    cost: ModelCost,
    *,
    prompt_tokens: int,
    chunk_tokens: int,
    machine: Machine,
    threads: int,
    streaming: Streaming | None = None,
    paging: Paging | None = None,
) -> float:
    """From an empty cache to the logits after the prompt, chunk by chunk, each of which unpacks all weights once, and
    reads what streams.
    """
    total_seconds = 0.0
    unpacking_seconds = 0.0
    if UNPACKING_RATE in machine.figures:
        values = sum(each.num_layers * each.values for each in cost.matrices if each.name != "output head")
        unpacking_seconds = values / (machine.figure(UNPACKING_RATE) * min(threads, machine.cores))
    for start in range(0, prompt_tokens, chunk_tokens):
        work = step_workload(cost, start_token=start, num_tokens=min(chunk_tokens, prompt_tokens - start))
        seconds = step_seconds(work, cost=cost, machine=machine, threads=threads, of_prompt=True)
        total_seconds += streamed_seconds(seconds.total + unpacking_seconds, streaming)
        total_seconds += missing_seconds(cost, len(range(start, min(start + chunk_tokens, prompt_tokens))), paging)
    return total_seconds


def forecast_speed(
    cost: ModelCost,
    *,
    machine: Machine,
    context_tokens: int,
    chunk_tokens: int,
    threads: int,
    streaming: Streaming | None = None,
    paging: Paging | None = None,
) -> SpeedForecast:
    """Decode after DECODE_CONTEXT_TOKENS, and prefill of a prompt of half the context, of one sequence."""
    half_tokens = max(1, context_tokens // 2)
    work = step_workload(cost, start_token=min(DECODE_CONTEXT_TOKENS, context_tokens) - 1, num_tokens=1)
    decode = step_seconds(work, cost=cost, machine=machine, threads=threads)
    first_token_seconds = prefill_seconds(
        cost,
        prompt_tokens=half_tokens,
        chunk_tokens=chunk_tokens,
        machine=machine,
        threads=threads,
        streaming=streaming,
        paging=paging,
    )
    missing = missing_seconds(cost, 1, paging)
    streams = missing > decode.total or (streaming is not None and streaming.disk_seconds > decode.total)
    return SpeedForecast(
        decode_tokens_per_second=1 / (streamed_seconds(decode.total, streaming) + missing),
        prefill_tokens_per_second=half_tokens / first_token_seconds,
        time_to_first_token_seconds=first_token_seconds,
        bound="disk" if streams else decode.bound,
        read_bytes_per_token=work.read_bytes,
        read_bytes_per_second=machine.tier("ram").read_bytes_per_second(threads, work.read_bytes),
        operations_per_token=work.matrix_operations + work.attention_operations,
        operations_per_second=(work.matrix_operations + work.attention_operations) / decode.compute,
        step_overhead_seconds=decode.overhead,
        assumed=tuple(
            name for name in _USED_FIGURES if name in machine.figures and machine.figures[name].origin == "assumed"
        ),
    )


def missing_seconds(cost: ModelCost, tokens: int, paging: Paging | None) -> float:
    """What experts that are not in memory add to a step of so many tokens."""
    if paging is None:
        return 0.0
    experts = (each for each in cost.matrices if each.name == "experts")
    return paging.missing_seconds(sum(each.work(tokens).read_bytes for each in experts))
