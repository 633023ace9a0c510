"""One step by operator: time, bytes, operations, and which part of the machine's limit each reaches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from residency.engine.stamps import LaunchTime
from residency.formats import Format, format_named
from residency.formats.tiles import TILE_ROWS
from residency.hardware import Machine
from residency.kernels.attention import partial_bytes
from residency.ledger import KvPages
from residency.ledger.groups import PageGroup
from residency.planner.cost import AttentionCost, ModelCost, compute_rates, step_workload
from residency.scheduler import Batch, BatchEntry
from residency.spec.state import KV_FORMATS
from residency.verifier.opened import Opened

PROFILE_REPEATS = 15
_FLOAT_BLOCK_COLUMNS = 4
Words = Mapping[str, int | float]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one launch reads and computes: matrices, keys and values come from memory, activations from caches."""

    read_bytes: int
    matrix_operations: int = 0
    vector_operations: int = 0


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All launches of a step that do the same work, added up."""

    kernel: str
    shape: str  # of a matrix ("1536 x 8960"), else empty
    launches: int
    seconds: float
    read_bytes: int
    operations: int
    least_seconds: float  # what reading or computing takes at the machine's limits, whichever is longer

    @property
    def share_of_limit(self) -> float:
        """How near the kernel is to the limit; 1 is the limit."""
        return self.least_seconds / self.seconds if self.seconds else 0.0

    def to_data(self, step_seconds: float) -> dict[str, object]:
        """As JSON values."""
        return {
            "kernel": self.kernel,
            "shape": self.shape,
            "launches": self.launches,
            "seconds": self.seconds,
            "read_bytes": self.read_bytes,
            "operations": self.operations,
            "share_of_step": self.seconds / step_seconds,
            "share_of_limit": self.share_of_limit,
        }


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """One step, by operator, the longest first."""

    what: str  # "decode after 1024 tokens"
    operators: tuple[OperatorTime, ...]

    @property
    def seconds(self) -> float:
        """All kernels together."""
        return sum(operator.seconds for operator in self.operators)

    def to_data(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "step": self.what,
            "seconds": self.seconds,
            "operators": [operator.to_data(self.seconds) for operator in self.operators],
        }


def profile_decode(model: Opened, machine: Machine, *, context_tokens: int, sequences: int = 1) -> StepProfile:
    """A step of one token of each of so many sequences, after `context_tokens` others."""
    start = max(1, context_tokens)
    what = f"decode of {sequences} sequences" if sequences > 1 else "decode"
    return _profile(
        model,
        machine,
        f"{what} after {context_tokens} tokens",
        [
            BatchEntry(request_id=number, start_token=start, num_tokens=1, of_prompt=False, needs_logits=True)
            for number in range(sequences)
        ],
    )


def profile_prefill(model: Opened, machine: Machine, *, prompt_tokens: int) -> StepProfile:
    """The last step of a prompt's prefill: of as many tokens as a step takes, or as the prompt has."""
    step_tokens = min(prompt_tokens, model.plan.chunk_tokens)
    start = prompt_tokens - step_tokens
    return _profile(
        model,
        machine,
        f"prefill of {step_tokens} tokens" + (f" after {start}" if start else ""),
        [BatchEntry(request_id=0, start_token=start, num_tokens=step_tokens, of_prompt=True, needs_logits=True)],
    )


def _profile(model: Opened, machine: Machine, what: str, entries: Sequence[BatchEntry]) -> StepProfile:
    """One step again and again, after keys and values that nobody computed: only its time is looked at."""
    plan = model.plan
    pages = KvPages(
        [PageGroup(num_pages=group.num_pages, window_tokens=group.window_tokens) for group in plan.kv_groups],
        page_tokens=plan.page_tokens,
    )
    for each in entries:
        pages.extend(each.request_id, start_token=each.start_token, num_tokens=each.num_tokens)
    batch = Batch(entries=tuple(entries))
    tokens = np.array(model.random_tokens(batch.num_tokens), np.int64)
    times = model.executor.profile(batch, pages, tokens, repeats=PROFILE_REPEATS)
    return StepProfile(what=what, operators=by_operator(times, batch, machine, plan.threads))


def by_operator(times: Iterable[LaunchTime], batch: Batch, machine: Machine, threads: int) -> tuple[OperatorTime, ...]:
    """Launches added up by kernel and matrix, the longest first."""
    groups: dict[tuple[str, str], list[tuple[LaunchTime, Work]]] = {}
    for each in times:
        groups.setdefault((each.kernel, _shape(each)), []).append((each, work_of(each, batch.entries)))
    step_bytes = sum(work.read_bytes for group in groups.values() for _, work in group)
    read_rate = machine.tier("ram").read_bytes_per_second(threads, max(1, step_bytes))
    rates = compute_rates(machine, threads, of_prompt=any(entry.of_prompt for entry in batch.entries))
    found = []
    for (kernel, shape), launches in groups.items():
        read_bytes = sum(work.read_bytes for _, work in launches)
        matrix = sum(work.matrix_operations for _, work in launches)
        vector = sum(work.vector_operations for _, work in launches)
        found.append(
            OperatorTime(
                kernel=kernel,
                shape=shape,
                launches=len(launches),
                seconds=sum(each.seconds for each, _ in launches),
                read_bytes=read_bytes,
                operations=matrix + vector,
                least_seconds=max(read_bytes / read_rate, matrix / rates.matrix + vector / rates.attention),
            )
        )
    return tuple(sorted(found, key=lambda operator: -operator.seconds))


def work_of(launch: LaunchTime, entries: Iterable[BatchEntry]) -> Work:
    """What a launch reads and computes, by its kernel's words; nothing for kernels that are not known here."""
    operator, _, variant = launch.kernel.partition(".")
    if operator == "attention" and variant != "combine":
        return _attend(launch.words, variant, entries)
    return _WORK[operator](launch.words, variant) if operator in _WORK else Work(read_bytes=0)


def _matmul(words: Words, variant: str) -> Work:
    rows, columns = _extents(words, variant)
    return Work(
        read_bytes=format_named(variant).bytes_of((rows, columns)),
        matrix_operations=2 * rows * columns * int(words["tokens"]),
    )


def _gated_matmul(words: Words, variant: str) -> Work:
    rows, columns = _gated_extents(words, variant)
    return Work(
        read_bytes=2 * _gated_format(variant).bytes_of((rows, columns)),
        matrix_operations=4 * rows * columns * (int(words["tokens"]) - int(words["int8"])),
    )


def _embed(words: Words, variant: str) -> Work:
    return Work(read_bytes=format_named(variant).bytes_of((int(words["tokens"]), int(words["columns"]))))


def _norm(words: Words, variant: str) -> Work:
    return _of_values(4 * int(words["columns"]) * int(words["tokens"]), operations_per_byte=1)


def _gate(words: Words, variant: str) -> Work:
    return _of_values(8 * int(words["columns"]) * int(words["tokens"]), operations_per_byte=1)


def _rotary(words: Words, variant: str) -> Work:
    heads = int(words["heads"]) + 2 * int(words["kv_heads"])
    return _of_values(4 * heads * int(words["head_dim"]) * int(words["tokens"]), operations_per_byte=1)


def _of_values(read_bytes: int, *, operations_per_byte: int) -> Work:
    return Work(read_bytes=read_bytes, vector_operations=read_bytes * operations_per_byte)


def _attend(words: Words, variant: str, entries: Iterable[BatchEntry]) -> Work:
    kv = KV_FORMATS[variant.removeprefix("attend_")]
    head_dim = int(words["head_dim"])
    layer = ModelCost(
        num_layers=1,
        matrices=(),
        attention=(
            AttentionCost(
                num_layers=1,
                window_tokens=int(words["window"]),
                operations_per_pair=4 * int(words["heads"]) * head_dim,
                bytes_per_token=2 * int(words["kv_heads"]) * kv.head_bytes(head_dim),
            ),
        ),
    )
    works = [step_workload(layer, start_token=each.start_token, num_tokens=each.num_tokens) for each in entries]
    return Work(
        read_bytes=sum(work.read_bytes for work in works),
        vector_operations=sum(work.attention_operations for work in works),
    )


def _combine(words: Words, variant: str) -> Work:
    parts = int(words["splits"]) * int(words["heads"]) * int(words["tokens"])
    return _of_values(parts * partial_bytes(int(words["head_dim"])), operations_per_byte=1)


def _extents(words: Words, variant: str) -> tuple[int, int]:
    number_format = format_named(variant)
    block_columns = _FLOAT_BLOCK_COLUMNS if number_format.is_float else number_format.block_values
    return int(words["tiles"]) * TILE_ROWS, int(words["blocks"]) * block_columns


def _gated_format(variant: str) -> Format:
    return format_named(variant.removeprefix("silu_").removeprefix("gelu_tanh_"))


def _gated_extents(words: Words, variant: str) -> tuple[int, int]:
    return 32 * int(words["groups"]), int(words["blocks"]) * _gated_format(variant).block_values


def _shape(launch: LaunchTime) -> str:
    operator, _, variant = launch.kernel.partition(".")
    if operator == "gated_matmul":
        rows, columns = _gated_extents(launch.words, variant)
        return f"2 x {rows} x {columns}"
    if operator != "matmul":
        return ""
    rows, columns = _extents(launch.words, variant)
    return f"{rows} x {columns}"


_WORK: Mapping[str, Callable[[Words, str], Work]] = {
    "matmul": _matmul,
    "gated_matmul": _gated_matmul,
    "embed": _embed,
    "norm": _norm,
    "gate": _gate,
    "rotary": _rotary,
    "attention": _combine,
}
