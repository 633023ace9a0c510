"""The roofline: a step takes as long as the slower of reading its bytes and doing its operations, plus overhead.

S. Williams, A. Waterman, D. Patterson: Roofline, an insightful visual performance model (CACM 52/4, 2009).
One model of a step's cost serves the engine here, whose kernels read on while they compute, and any machine of the
catalog (see planner/rates.py), where operator after operator has its own roofline.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from residency.formats import BF16, F16, F32
from residency.hardware import Machine
from residency.spec.layout import stored_bytes
from residency.spec.model import AttentionSpec, LatentAttentionSpec, LayerSpec, ModelSpec, MoeSpec, TensorSpec
from residency.spec.ranks import rank_tensor_bytes
from residency.spec.requantize import with_plain
from residency.spec.state import KV_F16, KvFormat

PROMPT_RATE = "prompt_matrix_operations_per_second"
UNPACKING_RATE = "prompt_unpacked_values_per_second"
PROMPT_ATTENTION_RATE = "prompt_attention_operations_per_second"
CACHE_RATE = "cache_read_bytes_per_second"

_RECURRENCE_OPERATIONS = 6  # for each value of a recurrent state: decay, input, output, each with an addition


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step computes: a token for each of `sequences`, and a chunk of one prompt that ends with logits."""

    sequences: int = 0
    context_tokens: int = 1  # that each of these tokens sees, itself included
    chunk_tokens: int = 0
    chunk_start: int = 0  # tokens of the prompt before the chunk
    candidates: int = 1  # tokens of each sequence that are computed at once: more than 1 where drafts are verified

    @property
    def tokens(self) -> int:
        """All tokens that pass the layers."""
        return self.sequences * self.candidates + self.chunk_tokens

    @property
    def logits(self) -> int:
        """Tokens that pass the output head."""
        return self.sequences * self.candidates + bool(self.chunk_tokens)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one operator of a step reads and computes."""

    name: str
    number_format: str  # of the weights, or of the cache
    read_bytes: float
    matrix_operations: float = 0  # multiplications and additions with weights
    attention_operations: float = 0  # with cached keys and values, or a recurrent state


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of one sequence, in bytes and operations."""

    read_bytes: int
    cache_bytes: int  # of these, keys and values
    matrix_operations: int  # multiplications and additions with weights
    attention_operations: int  # with cached keys and values

    @staticmethod
    def of(works: Sequence[Work]) -> "Workload":
        """All operators of a step together."""
        return Workload(
            read_bytes=round(sum(work.read_bytes for work in works)),
            cache_bytes=round(sum(work.read_bytes for work in works if work.number_format == "cache")),
            matrix_operations=round(sum(work.matrix_operations for work in works)),
            attention_operations=round(sum(work.attention_operations for work in works)),
        )


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """How long a step takes, by cause. Reading and computing happen at the same time."""

    read: float
    compute: float
    overhead: float
    unevenness: float = 0.0  # where operators take turns: what one waits for that another has left over
    exchange: float = 0.0  # between devices
    transfer: float = 0.0  # from other tiers, beyond what is hidden behind the rest

    @property
    def total(self) -> float:
        """From a step's begin to its end."""
        return max(self.read, self.compute) + self.unevenness + self.overhead + self.exchange + self.transfer

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """Which of the two the other waits for."""
        return "memory" if self.read + self.transfer >= self.compute else "compute"


@dataclass(frozen=True, kw_only=True)
class MatrixCost:
    """Matrices in layers that are alike. Of experts, a step reads those that its tokens are sent to."""

    name: Literal["layers", "experts", "output head"]
    num_layers: int
    read_bytes: int  # of one layer
    values: int  # of one layer: each token multiplies and adds once with each
    number_format: str
    num_experts: int = 1
    experts_per_token: int = 1

    def touched_share(self, tokens: int) -> float:
        """The share of the bytes that so many tokens read, each sent to experts that are drawn evenly."""
        if self.num_experts == 1:
            return 1.0 if tokens else 0.0
        return 1.0 - (1.0 - self.experts_per_token / self.num_experts) ** tokens

    def work(self, tokens: int) -> Work:
        """Of a step of so many tokens."""
        operations = 2 * self.num_layers * self.values * self.experts_per_token * tokens / self.num_experts
        return Work(
            name=self.name,
            number_format=self.number_format,
            read_bytes=self.num_layers * self.read_bytes * self.touched_share(tokens),
            matrix_operations=operations,
        )


@dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """What attention costs in layers that are alike."""

    num_layers: int
    window_tokens: int | None
    operations_per_pair: int  # of a token with one that it sees, in one layer
    bytes_per_token: int  # cached in one layer
    prompt_operations_per_pair: int | None = None  # where prompts are computed in another way; None: in the same

    def decode_bytes(self, context_tokens: int) -> int:
        """Cached bytes that one token reads which sees so many."""
        return self.num_layers * self.bytes_per_token * min(context_tokens, self.window_tokens or context_tokens)

    def work(self, step: Step) -> Work:
        """Of a step: every cached key and value that any token of a sequence sees is read once."""
        seen = min(step.context_tokens, self.window_tokens or step.context_tokens)
        pairs = step.sequences * step.candidates * seen * self.operations_per_pair
        read_tokens = step.sequences * seen
        if step.chunk_tokens:
            before = step.chunk_start
            visible = before if self.window_tokens is None else min(before, self.window_tokens - 1)
            read_tokens += visible + step.chunk_tokens
            seen_pairs = _seen_pairs(before, step.chunk_tokens, self.window_tokens)
            pairs += seen_pairs * (self.prompt_operations_per_pair or self.operations_per_pair)
        return Work(
            name="attention",
            number_format="cache",
            read_bytes=self.num_layers * self.bytes_per_token * read_tokens,
            attention_operations=self.num_layers * pairs,
        )


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """A model, or one rank's share of it, reduced to what steps are made of."""

    num_layers: int
    matrices: tuple[MatrixCost, ...]  # of the layers, then the head
    attention: tuple[AttentionCost, ...]
    format_bytes: Mapping[str, int] = field(default_factory=dict)  # of the matrices, by number format
    state_bytes: int = 0  # recurrent, of one sequence: read and written by every step
    state_values: int = 0

    @property
    def weight_bytes(self) -> int:
        """Read by a step whose tokens are sent to all experts."""
        return sum(each.num_layers * each.read_bytes for each in self.matrices)

    @staticmethod
    def of(model: ModelSpec, *, kv: KvFormat = KV_F16) -> "ModelCost":
        """The cost of `model` in the engine's own layout: each token multiplies and adds once with each value."""
        return _cost(model, kv, 1, lambda tensor, layer: stored_bytes(tensor))

    @property
    def unrouted_bytes(self) -> int:
        """Weights that a step reads wherever its tokens are sent."""
        return sum(each.num_layers * each.read_bytes for each in self.matrices if each.num_experts == 1)

    def routed_bytes(self, tokens: int) -> int:
        """Of experts, what a step of so many tokens reads that are sent to experts drawn evenly."""
        return round(sum(each.work(tokens).read_bytes for each in self.matrices if each.num_experts > 1))

    @staticmethod
    def on_device(model: ModelSpec, *, activation_type: str, kv: KvFormat) -> "ModelCost":
        """The cost of `model` on an accelerator, which keeps plain matrices in the activations' type."""
        laid = with_plain(model, {"bfloat16": BF16, "float16": F16, "float32": F32}[activation_type])
        return _cost(laid, kv, 1, lambda tensor, layer: tensor.num_bytes)

    @staticmethod
    def of_rank(model: ModelSpec, *, kv: KvFormat = KV_F16, tensor_parallel: int = 1) -> "ModelCost":
        """The cost of one of `tensor_parallel` ranks, its weights as they are published."""

        def num_bytes(tensor: TensorSpec, layer: LayerSpec | None) -> int:
            attention = layer.attention if layer else None
            kv_heads = attention.num_kv_heads if isinstance(attention, AttentionSpec) else None
            return rank_tensor_bytes(tensor, tensor_parallel, kv_heads)

        return _cost(model, kv, tensor_parallel, num_bytes)

    def read_efficiency(self, machine: Machine, working_set_bytes: int) -> float:
        """The part of the memory's rate at which all matrices are read, in steps of so many bytes."""
        needed = sum(
            num_bytes / machine.read_efficiency(name, working_set_bytes)
            for name, num_bytes in self.format_bytes.items()
        )
        return sum(self.format_bytes.values()) / needed if needed else machine.figure("read_efficiency")

    def works(self, step: Step) -> tuple[Work, ...]:
        """The operators of a step."""
        works = [each.work(step.logits if each.name == "output head" else step.tokens) for each in self.matrices]
        works += [each.work(step) for each in self.attention]
        if self.state_bytes:
            sequences = step.sequences + bool(step.chunk_tokens)
            works.append(
                Work(
                    name="recurrence",
                    number_format="cache",
                    read_bytes=2 * self.state_bytes * sequences,
                    attention_operations=_RECURRENCE_OPERATIONS * self.state_values * step.tokens,
                )
            )
        return tuple(works)


def step_workload(cost: ModelCost, *, start_token: int, num_tokens: int) -> Workload:
    """Tokens start_token … start_token + num_tokens - 1 in one step that ends with one token's logits.

    Every matrix is read once and every cached key and value that any of the tokens sees is read once.
    """
    return Workload.of(cost.works(Step(chunk_tokens=num_tokens, chunk_start=start_token)))


@dataclass(frozen=True, kw_only=True)
class ComputeRates:
    """Operations per second of all threads together."""

    matrix: float
    attention: float
    cache: float  # bytes of keys and values that attention gets through, beside its operations


def compute_rates(machine: Machine, threads: int, *, of_prompt: bool) -> ComputeRates:
    """What a step is computed at. A prompt has rates of its own where they have been measured; many of its tokens meet
    what attention has read once.
    """
    matrix, attention, cache = "matrix_int8_operations_per_second", "vector_f32_operations_per_second", CACHE_RATE
    if of_prompt and PROMPT_RATE in machine.figures:
        matrix = PROMPT_RATE
        attention = PROMPT_ATTENTION_RATE if PROMPT_ATTENTION_RATE in machine.figures else attention
    cores = min(threads, machine.cores)
    return ComputeRates(
        matrix=machine.figure(matrix) * cores,
        attention=machine.figure(attention) * cores,
        cache=math.inf if of_prompt or cache not in machine.figures else machine.figure(cache) * cores,
    )


def step_seconds(
    work: Workload, *, cost: ModelCost, machine: Machine, threads: int, of_prompt: bool = False
) -> StepSeconds:
    """Two rooflines, one after the other: of the matrices and of attention, whose kernels take turns."""
    ram_rate = machine.tier("ram").read_bytes_per_second(threads, work.read_bytes)
    rates = compute_rates(machine, threads, of_prompt=of_prompt)
    reads = (
        (work.read_bytes - work.cache_bytes) / cost.read_efficiency(machine, work.read_bytes) / ram_rate,
        work.cache_bytes / ram_rate,
    )
    computes = (
        work.matrix_operations / rates.matrix,
        work.attention_operations / rates.attention + work.cache_bytes / rates.cache,
    )
    read, compute = sum(reads), sum(computes)
    return StepSeconds(
        read=read,
        compute=compute,
        unevenness=sum(map(max, reads, computes)) - max(read, compute),
        overhead=machine.figure("step_overhead_seconds") + cost.num_layers * machine.figure("layer_overhead_seconds"),
    )


TensorBytes = Callable[[TensorSpec, LayerSpec | None], int]


def _cost(model: ModelSpec, kv: KvFormat, tensor_parallel: int, bytes_of: TensorBytes) -> ModelCost:
    matrices: Counter[MatrixCost] = Counter()
    attention: Counter[AttentionCost] = Counter()
    formats: Counter[str] = Counter()
    state_bytes = state_values = 0
    for layer, count in model.alike:
        for matrix in _layer_matrices(layer, bytes_of):
            matrices[matrix] += count
        for tensor in layer.tensors:
            formats[tensor.format.name] += count * bytes_of(tensor, layer) if len(tensor.shape) >= 2 else 0
        if layer.attention is not None:
            attention[_attention_cost(layer.attention, kv, tensor_parallel)] += count
        if layer.mixer is not None:
            state_bytes += count * (layer.mixer.state().fixed_bytes // tensor_parallel)
            state_values += count * (layer.mixer.state_values // tensor_parallel)
    head = model.head or model.embedding
    formats[head.format.name] += bytes_of(head, None)
    return ModelCost(
        num_layers=len(model.layers),
        format_bytes=dict(formats),
        matrices=(*(replace(each, num_layers=count) for each, count in matrices.items()), _head(model, bytes_of)),
        attention=tuple(replace(each, num_layers=count) for each, count in attention.items()),
        state_bytes=state_bytes,
        state_values=state_values,
    )


def _layer_matrices(layer: LayerSpec, bytes_of: TensorBytes) -> list[MatrixCost]:
    experts = [tensor for tensor in layer.tensors if tensor.role == "expert"]
    others = [tensor for tensor in layer.tensors if tensor.role != "expert"]
    found = [_matrices("layers", others, layer, bytes_of)]
    if isinstance(layer.mlp, MoeSpec) and experts:
        routed = _matrices("experts", experts, layer, bytes_of)
        found.append(replace(routed, num_experts=layer.mlp.num_experts, experts_per_token=layer.mlp.experts_per_token))
    return found


def _matrices(
    name: Literal["layers", "experts", "output head"],
    tensors: list[TensorSpec],
    layer: LayerSpec | None,
    bytes_of: TensorBytes,
) -> MatrixCost:
    read_bytes = values = 0
    largest: tuple[int, str] = (0, "F32")
    for tensor in tensors:
        held_bytes = bytes_of(tensor, layer)
        read_bytes += held_bytes
        if len(tensor.shape) >= 2:
            values += round(tensor.num_values * min(1.0, held_bytes / tensor.num_bytes))
            largest = max(largest, (held_bytes, tensor.format.name))
    return MatrixCost(name=name, num_layers=1, read_bytes=read_bytes, values=values, number_format=largest[1])


def _head(model: ModelSpec, bytes_of: TensorBytes) -> MatrixCost:
    """The head, the final norm, and a row of each table that is not the head."""
    head = _matrices("output head", [model.final_norm, model.head or model.embedding], None, bytes_of)
    tables = [tensor for tensor in model.others if tensor.role == "position"]
    if not model.tied:
        tables.append(model.embedding)
    rows = sum(tensor.format.bytes_of(tensor.shape[1:]) for tensor in tables)
    return replace(head, read_bytes=head.read_bytes + rows)


def _attention_cost(
    attention: AttentionSpec | LatentAttentionSpec, kv: KvFormat, tensor_parallel: int
) -> AttentionCost:
    heads = -(-attention.num_heads // tensor_parallel)
    if isinstance(attention, LatentAttentionSpec):
        seen = attention.kv_rank + attention.rope_dim
        expanded = attention.nope_dim + attention.rope_dim + attention.value_dim
        return AttentionCost(
            num_layers=1,
            window_tokens=None,
            operations_per_pair=2 * heads * (seen + attention.kv_rank),  # in the latent space, as decoding does
            bytes_per_token=kv.head_bytes(seen),
            prompt_operations_per_pair=2 * heads * expanded,
        )
    kv_heads = -(-attention.num_kv_heads // tensor_parallel)
    return AttentionCost(
        num_layers=1,
        window_tokens=attention.window_tokens,
        operations_per_pair=4 * heads * attention.head_dim,
        bytes_per_token=2 * kv_heads * kv.head_bytes(attention.head_dim),
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
