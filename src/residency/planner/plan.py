"""The plan: everything the engine needs to know, decided beforehand. Frozen, and JSON on disk."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from residency.errors import FileError
from residency.planner.paging import Paging
from residency.planner.streaming import Streaming
from residency.records import from_data, to_data
from residency.spec.state import AnyKvName
from residency.units import binary_bytes

PLAN_VERSION = 1
PAGE_TOKENS = 16  # of a page of the KV cache
TOLD_BESIDE = ("model", "devices", "fits", "missing_bytes", "origins")  # by `residency plan --json`, beside the plan
DTYPE_BYTES = {"bfloat16": 2, "float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int32": 4, "int64": 8}


@dataclass(frozen=True, kw_only=True)
class MemoryBytes:
    """Bytes by class of memory; forecast and measurement share this shape."""

    weights: int
    kv_cache: int
    activations: int
    runtime: int

    @property
    def peak(self) -> int:
        """All classes together."""
        return self.weights + self.kv_cache + self.activations + self.runtime


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One named activation array of a step; the engine allocates exactly these."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # a NumPy dtype name, one of DTYPE_BYTES

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class KvGroup:
    """Layers whose pages are handed out together: all full-attention layers, or all layers of one window."""

    layers: tuple[int, ...]
    window_tokens: int | None
    num_pages: int  # for all sequences together
    page_bytes: int  # of one page in one layer: keys and values

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages in all layers of the group."""
        return self.num_pages * self.page_bytes * len(self.layers)


@dataclass(frozen=True, kw_only=True)
class SpeedForecast:
    """What the cost model expects, with the figures it divided."""

    decode_tokens_per_second: float  # after a context of 128 tokens
    prefill_tokens_per_second: float
    time_to_first_token_seconds: float  # of a prompt as long as half the context
    bound: Literal["memory", "compute", "disk"]  # of decode
    read_bytes_per_token: int  # weights, keys and values of one token of decode
    read_bytes_per_second: float  # what the probe measured for a working set of read_bytes_per_token
    operations_per_token: int  # multiplications and additions of one token of decode
    operations_per_second: float  # of the integer matrix kernels
    step_overhead_seconds: float  # of one step, beside reading and computing
    assumed: tuple[str, ...]  # names of the rates that nobody has measured on this machine yet


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """Where a plan's bytes are, when that is a CUDA device's memory, and how its steps are recorded."""

    name: str
    multiprocessors: int
    activation_type: Literal["bfloat16", "float16", "float32"]
    decode_batches: tuple[int, ...]  # sequences of the steps of which there is a CUDA graph, rising
    memory_bytes: int  # of the device, the budget being what of it may be taken
    random_weights: Literal["source", "int8", "int4"] | None = None  # made up, in the checkpoint's formats or these
    streamed_layers: int = 0  # the last ones, which arrive from pinned RAM anew in each step
    disk_layers: int = 0  # of these, those that are read from the disk before
    layer_bytes: int = 0  # of a streamed layer, at most
    expert_slots: int = 0  # for experts that are brought from pinned RAM one by one; 0: they are with their layers
    num_experts: int = 0  # of all layers together, where there are slots
    disk_experts: int = 0  # of these, for how many pinned RAM has no room: they are read from the disk when asked for
    pinned_bytes: int = 0  # of RAM


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One model on one machine inside one budget."""

    model_path: Path
    model_fingerprint: str
    model_name: str
    architecture: str
    format_label: str
    budget_bytes: int
    context_tokens: int
    max_sequences: int
    chunk_tokens: int  # most tokens of one step
    page_tokens: int
    threads: int
    buffers: tuple[Buffer, ...]
    kv_format: AnyKvName  # of keys and values
    kv_groups: tuple[KvGroup, ...]
    memory: MemoryBytes
    forecast: SpeedForecast
    prompts_in_tiles: bool = False  # whether prompts are multiplied in tile registers (Intel AMX)
    streaming: Streaming | None = None  # what of the weights is read from the disk anew in each step; None: nothing
    device: DevicePlan | None = None  # None: this machine's processor and RAM
    paging: Paging | None = None  # slots for experts, where not all are in memory

    @property
    def is_made_up(self) -> bool:
        """Whether the weights are made up, so that what the model writes has no meaning."""
        return self.device is not None and self.device.random_weights is not None

    @property
    def free_bytes(self) -> int:
        """What the budget leaves over."""
        return self.budget_bytes - self.memory.peak

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name`; KeyError where the plan has none."""
        for buffer in self.buffers:
            if buffer.name == name:
                return buffer
        raise KeyError(name)

    def to_json(self) -> str:
        """The plan as text that `from_json` reads back to an equal plan."""
        return json.dumps({"plan_version": PLAN_VERSION, **to_data(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Plan":
        """The plan that `to_json` wrote; what is told beside it is passed over. Other text, unknown fields, wrong
        types, other versions and sums that do not add up are a FileError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise FileError("the plan cannot be used: it is not JSON; make it anew with --plan-out.") from None
        if not isinstance(data, dict) or "plan_version" not in data:
            raise FileError("the plan cannot be used: it has no 'plan_version', so it is not a plan of residency.")
        version = data.pop("plan_version")
        if version != PLAN_VERSION or isinstance(version, bool):
            raise FileError(
                f"the plan cannot be used: it has version {version!r:.40} and this residency reads {PLAN_VERSION}; "
                "make it anew with --plan-out."
            )
        for name in TOLD_BESIDE:
            data.pop(name, None)
        plan = from_data(Plan, data, what="the plan", error=FileError)
        _check(plan)
        return plan


def _check(plan: Plan) -> None:
    for name in ("context_tokens", "max_sequences", "chunk_tokens", "page_tokens", "threads"):
        if getattr(plan, name) < 1:
            raise FileError(f"the plan cannot be used: '{name}' is 0; make it anew with --plan-out.")
    for buffer in plan.buffers:
        if buffer.dtype not in DTYPE_BYTES:
            raise FileError(
                f"the plan cannot be used: buffer {buffer.name!r:.60} is of {buffer.dtype!r:.40}, not an array."
            )
    for name, sum_bytes, said_bytes in (
        ("activations", sum(buffer.num_bytes for buffer in plan.buffers), plan.memory.activations),
        ("kv_cache", sum(group.num_bytes for group in plan.kv_groups), plan.memory.kv_cache),
    ):
        if sum_bytes != said_bytes:
            raise FileError(
                f"the plan contradicts itself: its {name} add up to {sum_bytes} bytes "
                f"and it says {said_bytes}; make it anew with --plan-out."
            )
    if plan.memory.peak > plan.budget_bytes:
        raise FileError(
            f"the plan contradicts itself: it needs {binary_bytes(plan.memory.peak)}, "
            f"more than its budget of {binary_bytes(plan.budget_bytes)}; make it anew with --plan-out."
        )
