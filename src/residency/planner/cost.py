"""The roofline: a step takes as long as the slower of reading its bytes and doing its operations, plus overhead.

S. Williams, A. Waterman, D. Patterson: Roofline, an insightful visual performance model (CACM 52/4, 2009).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from residency.hardware import Machine
from residency.planner.plan import SpeedForecast
from residency.spec.layout import read_bytes_per_token
from residency.spec.model import ModelSpec

_USED_FIGURES = (
    "matrix_int8_operations_per_second",
    "vector_f32_operations_per_second",
    "read_efficiency",
    "step_overhead_seconds",
    "layer_overhead_seconds",
)

DECODE_CONTEXT_TOKENS = 128  # what is read of the KV cache by the token that the forecast of decode is for


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of one sequence, in bytes and operations."""

    read_bytes: int
    matrix_operations: int  # multiplications and additions with weights
    attention_operations: int  # with cached keys and values


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """How long a step takes, by cause. Reading and computing happen at the same time."""

    read: float
    compute: float
    overhead: float

    @property
    def total(self) -> float:
        """From a step's begin to its end."""
        return max(self.read, self.compute) + self.overhead

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """Which of the two the other waits for."""
        return "memory" if self.read >= self.compute else "compute"


@dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """What attention costs in layers that are alike."""

    num_layers: int
    window_tokens: int | None
    operations_per_pair: int  # of a token with one that it sees, in one layer
    bytes_per_token: int  # cached in one layer


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """A model reduced to what steps are made of."""

    num_layers: int
    weight_bytes: int  # read once in a step
    layer_operations: int  # with the weights of all layers, for one token
    head_operations: int  # for one token's logits
    attention: tuple[AttentionCost, ...]

    @staticmethod
    def of(model: ModelSpec, *, kv_value_bytes: int = 2) -> "ModelCost":
        """The cost of `model`, a multiplication and an addition for each value of a matrix."""
        values = sum(math.prod(t.shape) for layer in model.layers for t in layer.tensors if len(t.shape) == 2)
        alike: Counter[tuple[int | None, int, int]] = Counter()
        for layer in model.layers:
            a = layer.grouped_attention
            alike[a.window_tokens, 4 * a.num_heads * a.head_dim, layer.state(kv_value_bytes).bytes_per_token] += 1
        return ModelCost(
            num_layers=len(model.layers),
            weight_bytes=read_bytes_per_token(model),
            layer_operations=2 * values,
            head_operations=2 * math.prod((model.head or model.embedding).shape),
            attention=tuple(
                AttentionCost(
                    num_layers=num_layers,
                    window_tokens=window_tokens,
                    operations_per_pair=operations_per_pair,
                    bytes_per_token=bytes_per_token,
                )
                for (window_tokens, operations_per_pair, bytes_per_token), num_layers in alike.items()
            ),
        )


def step_workload(cost: ModelCost, *, start_token: int, num_tokens: int) -> Workload:
    """Tokens start_token … start_token + num_tokens - 1 in one step that ends with one token's logits.

    Every matrix is read once and every cached key and value that any of the tokens sees is read once.
    """
    attention_operations = cached_bytes = 0
    for alike in cost.attention:
        window_tokens = alike.window_tokens
        seen_pairs = _seen_pairs(start_token, num_tokens, window_tokens)
        visible_before = start_token if window_tokens is None else min(start_token, window_tokens - 1)
        attention_operations += alike.num_layers * alike.operations_per_pair * seen_pairs
        cached_bytes += alike.num_layers * alike.bytes_per_token * (visible_before + num_tokens)
    return Workload(
        read_bytes=cost.weight_bytes + cached_bytes,
        matrix_operations=cost.layer_operations * num_tokens + cost.head_operations,
        attention_operations=attention_operations,
    )


def step_seconds(work: Workload, *, num_layers: int, machine: Machine, threads: int) -> StepSeconds:
    """The roofline of one step."""
    read_rate = machine.tier("ram").read_bytes_per_second(threads, work.read_bytes) * machine.figure("read_efficiency")
    cores = min(threads, machine.cores)
    matrix_rate = machine.figure("matrix_int8_operations_per_second") * cores
    vector_rate = machine.figure("vector_f32_operations_per_second") * cores
    return StepSeconds(
        read=work.read_bytes / read_rate,
        compute=work.matrix_operations / matrix_rate + work.attention_operations / vector_rate,
        overhead=machine.figure("step_overhead_seconds") + num_layers * machine.figure("layer_overhead_seconds"),
    )


def prefill_seconds(cost: ModelCost, *, prompt_tokens: int, chunk_tokens: int, machine: Machine, threads: int) -> float:
    """From an empty cache to the logits after the prompt, chunk by chunk."""
    total_seconds = 0.0
    for start in range(0, prompt_tokens, chunk_tokens):
        work = step_workload(cost, start_token=start, num_tokens=min(chunk_tokens, prompt_tokens - start))
        total_seconds += step_seconds(work, num_layers=cost.num_layers, machine=machine, threads=threads).total
    return total_seconds


def forecast_speed(
    cost: ModelCost, *, machine: Machine, context_tokens: int, chunk_tokens: int, threads: int
) -> SpeedForecast:
    """Decode after DECODE_CONTEXT_TOKENS, and prefill of a prompt of half the context, of one sequence."""
    half_tokens = max(1, context_tokens // 2)
    work = step_workload(cost, start_token=min(DECODE_CONTEXT_TOKENS, context_tokens) - 1, num_tokens=1)
    decode = step_seconds(work, num_layers=cost.num_layers, machine=machine, threads=threads)
    first_token_seconds = prefill_seconds(
        cost, prompt_tokens=half_tokens, chunk_tokens=chunk_tokens, machine=machine, threads=threads
    )
    return SpeedForecast(
        decode_tokens_per_second=1 / decode.total,
        prefill_tokens_per_second=half_tokens / first_token_seconds,
        time_to_first_token_seconds=first_token_seconds,
        bound=decode.bound,
        read_bytes_per_token=work.read_bytes,
        read_bytes_per_second=machine.tier("ram").read_bytes_per_second(threads, work.read_bytes),
        operations_per_token=work.matrix_operations + work.attention_operations,
        operations_per_second=(work.matrix_operations + work.attention_operations) / decode.compute,
        step_overhead_seconds=decode.overhead,
        assumed=tuple(name for name in _USED_FIGURES if machine.figures[name].origin == "assumed"),
    )


def _seen_pairs(start_token: int, num_tokens: int, window_tokens: int | None) -> int:
    """Pairs of a token of the step and a token that it sees, itself included."""
    first, last = start_token + 1, start_token + num_tokens  # how many each would see without a window
    if window_tokens is None or last <= window_tokens:
        return (first + last) * num_tokens // 2
    if first >= window_tokens:
        return window_tokens * num_tokens
    growing = window_tokens - first + 1
    return (first + window_tokens) * growing // 2 + window_tokens * (num_tokens - growing)
