"""Experts that do not all fit into memory: how many slots there are for them, and what the others cost."""

from dataclasses import dataclass, replace

from residency.spec.layout import store_layout
from residency.spec.model import ModelSpec, MoeSpec

READERS = 4  # reads of the disk that are in flight
PAGING_BYTES = 640 * 1024  # of the runtime: threads that read, the one that decides, and the code that they alone touch


@dataclass(frozen=True, kw_only=True)
class Paging:
    """Slots in memory, each with room for any expert; experts that are in none are read from the disk when needed."""

    slots: int
    slot_bytes: int
    num_experts: int  # of all layers together
    token_bytes: int  # of the experts that one token is sent to
    hit_rate: float  # of the experts that a step needs, the share that is expected to be in a slot
    disk_bytes_per_second: float

    @property
    def memory_bytes(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes

    def missing_seconds(self, needed_bytes: float) -> float:
        """What reading the missing ones of so many bytes of experts adds to a step: which they are is known too late
        for anything else to be done meanwhile."""
        return (1.0 - self.hit_rate) * needed_bytes / self.disk_bytes_per_second


def least_paging(model: ModelSpec, disk_bytes_per_second: float) -> Paging | None:
    """Slots for one layer's experts, which a step may need all; None for a model that has no experts."""
    layers = [layer for layer in model.layers if layer.experts]
    if not layers:
        return None
    layout = store_layout(model)
    slot_bytes = max(layout.by_name[layer.experts[0].name].stride_bytes for layer in layers)
    most_experts = max(layer.experts[0].copies for layer in layers)
    num_experts = sum(layer.experts[0].copies for layer in layers)
    token_bytes = sum(
        layer.mlp.experts_per_token * layout.by_name[layer.experts[0].name].stride_bytes
        for layer in layers
        if isinstance(layer.mlp, MoeSpec)
    )
    return with_slots(
        Paging(
            slots=most_experts,
            slot_bytes=slot_bytes,
            num_experts=num_experts,
            token_bytes=token_bytes,
            hit_rate=0.0,
            disk_bytes_per_second=disk_bytes_per_second,
        ),
        most_experts,
    )


def with_slots(paging: Paging, slots: int) -> Paging:
    """The same with so many slots, at most one for each expert. The hit rate is what is sure: that of routes that are
    drawn evenly, which no choice of residents raises. Favourites make it better.
    """
    slots = min(slots, paging.num_experts)
    return replace(paging, slots=slots, hit_rate=slots / paging.num_experts)
