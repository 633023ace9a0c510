"""What a run on a CUDA device takes of its memory, before it is known what fits."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from residency.ledger.kv import pages_of_a_sequence
from residency.planner.device_buffers import device_buffers
from residency.planner.plan import PAGE_TOKENS, Buffer, DevicePlan, KvGroup, MemoryBytes
from residency.spec.device_layout import DeviceLayout, device_layout
from residency.spec.model import ModelSpec
from residency.spec.state import AnyKvName, kv_format_named

_MOST_GRAPHED = 256  # sequences


@dataclass(frozen=True, kw_only=True)
class DeviceRequest:
    """What is asked of a run on a device; None leaves the choice to the planner."""

    context_tokens: int | None = None
    max_sequences: int = 1
    chunk_tokens: int | None = None
    logit_rows: int | None = None
    budget_bytes: int | None = None
    kv_format: AnyKvName = "BF16"
    activation_type: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    random_weights: Literal["source", "int8", "int4"] | None = None  # how `model` was made up, if it was
    oversubscribe: bool = False  # sequences share pages where there is no room for the whole context of each


def decode_batches(max_sequences: int) -> tuple[int, ...]:
    """Sequences of the steps that have a graph: 1, 2, 4, 8, then every eighth, as far as they may be needed."""
    most = min(max_sequences, _MOST_GRAPHED)
    sizes = [size for size in (1, 2, 4, *range(8, _MOST_GRAPHED + 1, 8)) if size < most]
    return (*sizes, most)


@dataclass(frozen=True, kw_only=True)
class DeviceNeeds:
    """What a run takes of a device's memory, by how much of the weights and of the pages is there."""

    model: ModelSpec
    asked: DeviceRequest
    multiprocessors: int
    runtime_bytes: int
    num_streamed: int = 0
    num_disk: int = 0
    expert_slots: int = 0
    disk_experts: int = 0
    whole_sequences: int | None = None  # for whose whole contexts there are pages; None: all

    @cached_property
    def layout(self) -> DeviceLayout:
        """Where the weights lie."""
        return device_layout(
            self.model,
            self.asked.activation_type,
            num_streamed=self.num_streamed,
            num_disk=self.num_disk,
            expert_slots=self.expert_slots,
            disk_experts=self.disk_experts,
        )

    def device_plan(self, name: str, memory_bytes: int) -> DevicePlan:
        """What a plan says of its device."""
        layout, experts = self.layout, self.layout.experts
        return DevicePlan(
            name=name,
            multiprocessors=self.multiprocessors,
            activation_type=self.asked.activation_type,
            decode_batches=decode_batches(self.asked.max_sequences),
            memory_bytes=memory_bytes,
            random_weights=self.asked.random_weights,
            streamed_layers=len(layout.streamed_layers),
            disk_layers=len(layout.disk_layers),
            layer_bytes=layout.layer_bytes,
            expert_slots=0 if experts is None else experts.slots,
            num_experts=0 if experts is None else experts.num_experts,
            disk_experts=0 if experts is None else experts.disk_experts,
            pinned_bytes=layout.host_bytes,
        )

    def buffers(self, context_tokens: int, chunk_tokens: int) -> tuple[Buffer, ...]:
        """A step's arrays."""
        asked = self.asked
        return device_buffers(
            self.model,
            activation_type=asked.activation_type,
            multiprocessors=self.multiprocessors,
            chunk_tokens=chunk_tokens,
            max_sequences=asked.max_sequences,
            context_tokens=context_tokens,
            logit_rows=asked.logit_rows,
            quantizes_keys=asked.kv_format == "INT8",
            layout=self.layout,
        )

    def kv_groups(self, context_tokens: int, chunk_tokens: int) -> tuple[KvGroup, ...]:
        """The pages of all sequences."""
        kv = kv_format_named(self.asked.kv_format)
        layers: dict[tuple[int | None, int], list[int]] = {}
        for index, layer in enumerate(self.model.layers):
            attention = layer.grouped_attention
            page_bytes = attention.state(kv).bytes_per_token * PAGE_TOKENS
            layers.setdefault((attention.window_tokens, page_bytes), []).append(index)
        return tuple(
            KvGroup(
                layers=tuple(indices),
                window_tokens=window,
                num_pages=(self.whole_sequences or self.asked.max_sequences)
                * pages_of_a_sequence(
                    context_tokens, page_tokens=PAGE_TOKENS, window_tokens=window, chunk_tokens=chunk_tokens
                ),
                page_bytes=page_bytes,
            )
            for (window, page_bytes), indices in layers.items()
        )

    def memory(self, context_tokens: int, chunk_tokens: int) -> MemoryBytes:
        """All of it, by class."""
        return MemoryBytes(
            weights=self.layout.device_bytes,
            kv_cache=sum(group.num_bytes for group in self.kv_groups(context_tokens, chunk_tokens)),
            activations=sum(buffer.num_bytes for buffer in self.buffers(context_tokens, chunk_tokens)),
            runtime=self.runtime_bytes,
        )
